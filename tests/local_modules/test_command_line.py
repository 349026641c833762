"""Command lines: what becomes of them, and of mistakes in them."""

import pytest
import yaml

from local_modules.command_line import parse_command_line
from local_modules.config import plain_values
from tests.hparams.trees import HPARAMS, SYSTEMS
from tests.mistakes import message

CONFORMER = str(HPARAMS / "conformer.yaml")


class TestCommandLine:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-4", 1e-4),
            ("-1e-4", -1e-4),
            ("1.5E3", 1500.0),
            ("0.002", 0.002),
            ("12", 12),
            ("True", True),
            ("false", False),
            ("null", None),
            ("results/a b", "results/a b"),
            ("/data/vox", "/data/vox"),
            ("demo", "demo"),
            ("[95, 105]", [95, 105]),
            ("[a, 1e-3]", ["a", 1e-3]),
        ],
    )
    @pytest.mark.parametrize("joined", [False, True])
    def test_values(self, text, value, joined):
        pair = [f"--lr={text}"] if joined else ["--lr", text]
        file, _, overrides = parse_command_line(["a.yaml", *pair, "--emb_dim", "8"])
        assert file == "a.yaml"
        assert overrides == {"lr": value, "emb_dim": 8}
        assert type(overrides["lr"]) is type(value)

    def test_run_options_are_no_overrides(self):
        _, run_opts, overrides = parse_command_line(
            ["a.yaml", "--device", "cpu", "--precision", "bf16", "--seed", "3"]
        )
        assert (run_opts.device, run_opts.precision) == ("cpu", "bf16")
        assert overrides == {"seed": 3}

    def test_run_options_that_the_recipe_has_are_both(self):
        """Or a resumed run and a study would not know of them."""
        argv = [CONFORMER, "--max_grad_norm", "1", "--grad_accumulation_factor", "2"]
        _, run_opts, overrides = parse_command_line(argv)
        assert run_opts.max_grad_norm == 1.0
        assert overrides == {"max_grad_norm": 1.0}

    @pytest.mark.parametrize("key", ["pretrained", "shards", "shard_cache", "trials"])
    def test_files_called_like_numbers(self, key):
        given = parse_command_line(["a.yaml", f"--{key}", "2024"])[2]
        assert given == {key: "2024"}
        assert parse_command_line(["a.yaml", f"--{key}", "null"])[2] == {key: None}

    @pytest.mark.parametrize("name", ["20240105", "2024-01-05", "1e3", "2024-13-45"])
    def test_folders_may_be_called_anything(self, name):
        overrides = parse_command_line(["a.yaml", "--output_folder", name])[2]
        assert overrides == {"output_folder": name}

    def test_no_folder(self):
        assert parse_command_line(["a.yaml", "--csv_folder", "null"])[2] == {
            "csv_folder": None
        }

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ("--optimizer_step_limit abc", "--optimizer_step_limit abc: has to be"),
            ("--optimizer_step_limit 0", "--optimizer_step_limit 0: has to be above"),
            ("--optimizer_step_limit=-5", "--optimizer_step_limit -5: has to be"),
            ("--grad_accumulation_factor 0", "--grad_accumulation_factor 0: has to be"),
            ("--device cud", "--device cud: has to be one of torch's"),
            ("--device cuda:99", "--device cuda:99: torch sees"),
            ("--device cpu --precision fp16", "--precision fp16: is for GPUs"),
            ("--lr 1 --lr 2", "--lr: is given 2 times"),
            ("--trials --lr 0.1", "--trials: has no value; for none, give null"),
            ("--compile_module_keys a", "--compile_module_keys: needs --compile too"),
            ("--jit_module_keys a", "--jit_module_keys: needs --jit too"),
            ("--lr 2024-13-45", "expected FILE.yaml"),
            ("--auto_mix_prec", "--auto_mix_prec: is --precision fp16 now"),
            ("--device cpu --eval_precision fp16", "--eval_precision fp16: is for"),
            ("--data_parallel_backend", "--data_parallel_backend: use torchrun"),
            (
                "--ckpt_interval_minutes 5 --ckpt_interval_steps 5",
                "--ckpt_interval_steps: is for a run without --ckpt_interval_minutes",
            ),
        ],
    )
    def test_wrong_values(self, arguments, words):
        assert words in message(parse_command_line, ["a.yaml", *arguments.split()])

    @pytest.mark.parametrize("nothing", ["", " "])
    @pytest.mark.parametrize("joined", [False, True])
    def test_an_unset_variable_is_no_value(self, nothing, joined):
        """In quotation marks; YAML takes it for null, which makes another run."""
        keys = ("output_folder", "pretrained", "noise_folder")
        for key in keys:
            pair = [f"--{key}={nothing}"] if joined else [f"--{key}", nothing]
            text = message(parse_command_line, ["a.yaml", *pair, "--lr", "1"])
            assert text == f"--{key}: has no value; for none, give null"

    @pytest.mark.parametrize(
        ("given", "whole"),
        [
            ("--ckpt_interval_min", "--ckpt_interval_minutes"),
            ("--grad_accumulation=4", "--grad_accumulation_factor"),
            ("--prec", "--precision"),
            ("--test", "--test_only"),
        ],
    )
    def test_run_options_are_written_out(self, given, whole):
        """SpeechBrain takes an abbreviation, and then does without the option."""
        text = message(parse_command_line, ["a.yaml", given, "4"])
        assert text == f"{given.partition('=')[0]}: has to be written out, as {whole}"

    @pytest.mark.parametrize(
        "value",
        [
            "/data/lang=en",
            "https://host/p?sig=abc&t=1=",
            "pipe:AWS_PROFILE=x aws s3 cp s3://B/{} -",
        ],
    )
    @pytest.mark.parametrize("joined", [False, True])
    def test_equals_within_a_value(self, value, joined):
        """SpeechBrain makes a space of it."""
        pair = [f"--shards={value}"] if joined else ["--shards", value]
        file, _, overrides = parse_command_line(["a=b.yaml", *pair, "--lr", "1"])
        assert file == "a=b.yaml"
        assert overrides == {"shards": value, "lr": 1}

    def test_equals_within_a_run_option(self):
        text = message(parse_command_line, ["a.yaml", "--device", "a=b"])
        assert text.startswith("--device a=b: has to be one of")
        text = message(parse_command_line, ["a.yaml", "--precision=a=b"])
        assert "'a=b'" in text

    def test_a_name_like_a_date_is_a_name(self):
        argv = ["a.yaml", "--note", "2024-05-06"]
        assert parse_command_line(argv)[2] == {"note": "2024-05-06"}

    def test_nothing_but_the_file(self):
        assert parse_command_line(["a.yaml"])[2] == {}

    def test_wrong_precision(self):
        text = message(parse_command_line, ["a.yaml", "--precision", "fp17"])
        assert text.startswith("argument --precision:")
        assert "fp17" in text and "bf16" in text

    @pytest.mark.parametrize(
        "argv",
        [
            [],
            ["a.yaml", "lr", "3"],
            ["a.yaml", "--lr", "{"],
            ["a.yaml", "--lr", "a: b"],
            ["a.yaml", "--lr", "1", "--lr", "2"],
        ],
    )
    def test_malformed(self, argv):
        message(parse_command_line, argv)

    def test_every_key_gets_through(self):
        """None is taken for the abbreviation of a run option."""
        keys = {key for system in SYSTEMS for key in plain_values(system, {})}
        values = dict.fromkeys(sorted(keys), "3") | {"precision": "bf16"}
        argv = [word for key in values for word in (f"--{key}", values[key])]
        _, run_opts, overrides = parse_command_line(["a.yaml", *argv])
        assert keys - set(overrides) == keys & set(run_opts.overridden_args)


def test_yaml_loader_agrees_on_floats():
    """PyYAML takes 1e-4 for text; the command line must not."""
    assert yaml.safe_load("1e-4") == "1e-4"
    assert parse_command_line(["a.yaml", "--lr", "1e-4"])[2]["lr"] == 0.0001
