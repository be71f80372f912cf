"""A camera that classifies: torchvision's ResNet-50 divided between the camera and a server.

    python examples/resnet_camera.py            # ResNet-50, 224 x 224
    python examples/resnet_camera.py --small    # ResNet-18, 64 x 64, a small search

Needs `pip install 'torchcoinfer[vision]'`. Pretrained weights are used if they are in the torch hub cache;
without
them the weights are random: sizes, times and the split are real, classes are not.
"""

import argparse

import torch

import torchcoinfer as tci
from torchcoinfer.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a smaller model and search, for a quick look")
    small = parser.parse_args().small

    loaded = load_model("torchvision:resnet18" if small else "torchvision:resnet50")
    for note in loaded.notes:
        print(f"note: {note}")
    size, generator = (64 if small else 224), torch.Generator().manual_seed(0)
    frames = [torch.rand(4, 3, size, size, generator=generator) for _ in range(9)]

    # neither side can hold the whole model; the split decides whether pixels or features cross the link
    memory = "6 MiB" if small else "14 MiB"
    budget = tci.Budget(latency="2 s", device_memory=memory, server_memory=memory, uplink="200 kB")
    result = tci.compress_and_split(
        loaded.model,
        budget,
        example_inputs=(frames[0][:1],),
        calibration=[(frame,) for frame in frames],
        device="raspberry-pi-4",
        server="laptop-4core",
        link="wifi-2.4ghz",
        search=tci.Search(bits=(4, 8), sparsities=(0.0,), algorithms=("nearest",)) if small else tci.Search(),
    )
    print(result.report())

    with torch.no_grad():
        exact, found = loaded.model(frames[-1]), result(frames[-1])
    print(f"same class as the original: {(exact.argmax(-1) == found.argmax(-1)).float().mean():.0%}")


if __name__ == "__main__":
    main()
