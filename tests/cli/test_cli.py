"""The command line: fast help, one clear message for every error, and each command on a tiny model."""

import json
import subprocess
import sys

import pytest

from torchcoinfer import cli


def test_help_needs_no_torch():
    program = (
        "import sys\n"
        "from torchcoinfer import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)


def test_a_bench_suite_needs_no_other():
    # a lent machine with a GPU has not everything: the kernels' suite must run without the solver
    program = (
        "import sys\n"
        "sys.modules.update(highspy=None, torch_pruning=None, sklearn=None)\n"  # cannot be imported
        "from torchcoinfer import cli\n"
        "try: cli.main(['bench', sys.argv[1], '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
    )
    for suite, option in (("kernels", "--goals"), ("decode", "--rounds")):
        done = subprocess.run([sys.executable, "-c", program, suite], capture_output=True, text=True)
        assert done.returncode == 0 and option in done.stdout, done.stderr


def test_every_bench_suite_is_summed_up(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    listed = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} 'torchcoinfer bench {name}': " in listed for name in cli.BENCH_SUITES)


@pytest.mark.parametrize("arguments", [[], ["--version"]])
def test_help_and_version(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert "torchcoinfer" in capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert cli.COMMANDS[name].summary in " ".join(capsys.readouterr().out.split())


BAD = {
    "unknown command": (["frobnicate"], ["invalid choice", "compress"]),
    "unknown profile": (
        ["profile", "raspi"],
        ["ArgumentError", "'raspi'", "raspberry-pi-5", "wifi-5ghz", "local"],
    ),
    "profile file": (["profile", "nowhere.toml"], ["FormatError", "nowhere.toml"]),
    "no budget": (["plan"], ["ArgumentError", "no limit", "--latency '80 ms'"]),
    "unit": (["plan", "--latency", "80 parsecs"], ["UnitError", "parsecs", "ms"]),
    "bits": (["plan", "--latency", "1 s", "--bits", "2,x"], ["ArgumentError", "'2,x'", "2,3,4,8"]),
    "model": (
        ["plan", "--latency", "1 s", "--model", "/no/such/folder"],
        ["ArgumentError", "/no/such/folder", "minilm"],
    ),
    "plan file": (["compress", "--plan", "no.json", "--output", "out"], ["ArgumentError", "no.json"]),
    "saved folder": (["report", "/no/such/folder"], ["FormatError", "/no/such/folder"]),
    "export folder": (["export", "/no/such/folder", "--output", "out"], ["FormatError", "/no/such/folder"]),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_are_one_message_and_exit_code_2(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, words = BAD[name]
    try:
        code = cli.main(arguments)
    except SystemExit as stop:  # argparse's own
        code = stop.code
    message = capsys.readouterr().err
    assert code == 2
    assert all(word in message for word in words), message
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())


def test_profile_lists_shows_and_saves(capsys, tmp_path):
    assert cli.main(["profile"]) == 0
    assert "raspberry-pi-5" in capsys.readouterr().out
    saved = tmp_path / "link.toml"
    assert cli.main(["profile", "lte", "--save", str(saved)]) == 0
    assert "uplink_bps = 10000000.0" in capsys.readouterr().out
    assert cli.main(["profile", str(saved)]) == 0
    assert "Huang" in capsys.readouterr().out


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_plan_compress_export_report(model_folder, tmp_path, capsys):
    common = ["--model", str(model_folder), "--server", "laptop-4core", "--quiet", "--bits", "4,8"]
    plan, saved, files = tmp_path / "plan.json", tmp_path / "saved", tmp_path / "files"
    assert cli.main(["plan", *common, "--latency", "1 s", "--cut", "device", "--output", str(plan)]) == 0
    assert json.loads(plan.read_text())["cut"]["name"] == "device"
    assert "ALTERNATIVES" in capsys.readouterr().out
    assert cli.main(["compress", *common, "--plan", str(plan), "--output", str(saved)]) == 0
    assert (saved / "plan.json").is_file()
    assert cli.main(["report", str(saved), "--html", str(tmp_path / "page.html")]) == 0
    assert "<html" in (tmp_path / "page.html").read_text().lower()
    assert cli.main(["export", str(saved), "--output", str(files)]) == 0
    assert len(list(files.iterdir())) == 2
    capsys.readouterr()
    assert cli.main(["compress", *common, "--latency", "1 ns", "--output", str(tmp_path / "never")]) == 2
    assert "InfeasibleBudget" in capsys.readouterr().err
    assert not (tmp_path / "never").exists()


def test_a_saved_table_is_planned_again_without_model_and_torch(model_folder, tmp_path, capsys):
    first, table, again = tmp_path / "first.json", tmp_path / "table.json", tmp_path / "again.json"
    common = ["--model", str(model_folder), "--server", "laptop-4core", "--quiet", "--bits", "4,8"]
    limits = ["--device-memory", "60 KiB", "--latency", "1 s", "--cut", "device"]
    assert cli.main(["plan", *common, *limits, "--save-table", str(table), "--output", str(first)]) == 0
    arguments = ["plan", "--table", str(table), *limits, "--output", str(again)]
    program = (
        "import sys\n"
        "from torchcoinfer import cli\n"
        f"assert cli.main({arguments!r}) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    one, other = json.loads(first.read_text()), json.loads(again.read_text())
    assert one["provenance"] == other["provenance"]  # the model's hash, too
    assert other["predicted"]["device_bytes"] <= 60 * 1024
    assert other["cut"] == one["cut"]
    roomier = [
        *arguments[:3],
        "--device-memory",
        "90 KiB",
        "--link",
        "lte",
        "--pareto",
        "uplink",
        "--points",
        "3",
    ]
    capsys.readouterr()
    assert cli.main([*roomier, "--output", str(again)]) == 0
    assert "uplink_bytes" in capsys.readouterr().out
    other = json.loads(again.read_text())
    assert other["provenance"]["link"] == "lte"
    assert other["predicted"]["device_bytes"] > one["predicted"]["device_bytes"]
    assert list(tmp_path.glob("again-uplink-*.json"))
    assert cli.main(["compress", *common, "--plan", str(again), "--output", str(tmp_path / "saved")]) == 0
    table.write_text(table.read_text()[:-100])
    assert cli.main(arguments) == 2
    assert "FormatError" in capsys.readouterr().err
    assert cli.main([*arguments, "--pareto", "speed"]) == 2
    assert "no front along this row" in capsys.readouterr().err
