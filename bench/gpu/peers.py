#!/usr/bin/env python3
"""What others do on the same GPU, in the shapes of kvtier-gpu-check --bench: PyTorch's attention over
a full cache, and kvpress's KVzipPress over a model of random weights.

    peers.py [--json FILE [--resume]] [--device N] [--models A,B] [--contexts N,N] [--rows PREFIX,...]
             [--runs N] [--tokenizer FOLDER] [--list]

Rows, in order of value: `sdpa/MODEL/TOKENS/BACKEND[-gqa]`, one query row per sequence over a full
cache, by each backend of PyTorch's scaled_dot_product_attention, with its own sharing of KV heads
and with KV heads repeated beforehand; `kvpress/MODEL/TOKENS`, prefill alone and the whole
compression. FILE gets a JSON object per line, as kvtier-gpu-check writes it, each as soon as it is
measured; --resume measures what FILE does not hold yet of this device, these versions and this
script and number of runs. kvpress asks for a tokenizer: --tokenizer
names a folder with one, else its rows are left out, by name.

Exit status: 0 all measured, 1 something failed, 2 wrong arguments or no row that fits them, 77 no
PyTorch or no GPU.
Never run on a GPU yet.
"""

import argparse
import importlib.metadata
import json
import math
import os
import pathlib
import statistics
import sys
import time
import zlib

SKIPPED = 77
SEED = 20260101
ROTATE_BYTES = 512 << 20  # More than a GPU's cache holds.

# As tests/gpu/bench_cases.cc has them, and what a whole model needs.
MODELS = {
    "llama-3.1-8b": dict(layers=32, kv_heads=8, group=4, head_dim=128, hidden=4096, mlp=14336,
                         vocabulary=128256, kind="llama"),
    "qwen2.5-14b": dict(layers=48, kv_heads=8, group=5, head_dim=128, hidden=5120, mlp=13824,
                        vocabulary=152064, kind="qwen2"),
}
CONTEXTS = [131072, 32768, 8192]
SDPA_BACKENDS = ["FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]


def row_names(models, contexts, with_kvpress):
    """All rows in order of value."""
    names = [f"sdpa/{model}/{tokens}/{backend.lower()}{sharing}"
             for model in models for tokens in contexts for backend in SDPA_BACKENDS
             for sharing in ("-gqa", "")]
    if with_kvpress:
        names += [f"kvpress/{model}/{tokens}" for model in models for tokens in contexts]
    return names


def build_of(torch, runs):
    """What is measured: a row of another build is measured again."""
    def version(package):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "none"

    return (f"torch {torch.__version__}, transformers {version('transformers')}, "
            f"kvpress {version('kvpress')}, {runs} runs, "
            f"peers.py 0x{zlib.crc32(pathlib.Path(__file__).read_bytes()):08X}")


class Results:
    """The rows of a file; refuses to write over an old one."""

    def __init__(self, path, resume, device, build):
        self.path = pathlib.Path(path) if path else None
        self.device = device
        self.build = build
        self.measured = set()
        if self.path is None or not self.path.exists():
            return
        if not resume:
            raise FileExistsError(f"{path} is there: --resume it, or name another file")
        data = self.path.read_bytes()
        whole = data[:data.rfind(b"\n") + 1]  # Without a line that was cut off.
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                if (row["device"] == device and row.get("build") == build
                        and "figures" in row):
                    self.measured.add(row["name"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} line {number} is no row of a benchmark") from error
        if len(whole) < len(data):  # Cut, not written anew: it is the only copy.
            os.truncate(self.path, len(whole))

    def add(self, name, outcome):
        row = {"build": self.build, "device": self.device, "name": name, **outcome}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
        print(json.dumps(row, sort_keys=True), flush=True)


def check_figures(figures):
    """The same; JSON has no number for what is not finite."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    return figures


def run_rows(names, results, measure):
    """Measures what is not there yet, in order; how many failed."""
    failed = 0
    for name in names:
        if name in results.measured:
            continue
        try:
            results.add(name, {"figures": check_figures(measure(name))})
        except Exception as error:  # noqa: BLE001: a peer's failure is a row, not the end of the run.
            failed += 1
            results.add(name, {"error": f"{type(error).__name__}: {error}"})
    return failed


class Torch:
    """Measures rows with PyTorch on one GPU."""

    def __init__(self, torch, device, runs, tokenizer):
        self.torch = torch
        self.device = torch.device("cuda", device)
        self.runs = runs
        self.tokenizer = tokenizer

    def seconds(self, work):
        """Of the median run, each between two waits for the device; the first is not counted."""
        times = []
        for run in range(self.runs + 1):
            self.torch.cuda.synchronize(self.device)
            start = time.monotonic()
            work()
            self.torch.cuda.synchronize(self.device)
            if run > 0:
                times.append(time.monotonic() - start)
        return statistics.median(times)

    def measure(self, name):
        kind, model, tokens, *rest = name.split("/")
        self.torch.manual_seed(SEED)
        self.torch.cuda.empty_cache()
        if kind == "kvpress":
            return self.kvpress(MODELS[model], int(tokens))
        backend, _, sharing = rest[0].partition("-")
        return self.sdpa(MODELS[model], int(tokens), backend.upper(), sharing == "gqa")

    def sdpa(self, shape, tokens, backend, shares):
        torch = self.torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        heads = shape["kv_heads"] * shape["group"]
        stored = shape["kv_heads"] if shares else heads
        row = shape["kv_heads"] * shape["head_dim"] * 2
        useful = 2 * tokens * row  # Keys and values, however often a peer stores them.
        layers = max(1, min(shape["layers"], ROTATE_BYTES // useful + 1))
        new = lambda count, rows: torch.randn(1, count, rows, shape["head_dim"],
                                              dtype=torch.bfloat16, device=self.device)
        caches = [(new(stored, tokens), new(stored, tokens)) for _ in range(layers)]
        query = new(heads, 1)
        attention = torch.nn.functional.scaled_dot_product_attention

        def step():
            for keys, values in caches:
                attention(query, keys, values, enable_gqa=shares)

        with torch.inference_mode(), sdpa_kernel(getattr(SDPBackend, backend)):
            seconds = self.seconds(step)
        return {"seconds_per_layer": seconds / layers, "layers": layers,
                "bytes_per_second": useful * layers / seconds}

    def kvpress(self, shape, tokens):
        torch = self.torch
        import kvpress
        import transformers
        config = transformers.AutoConfig.for_model(
            shape["kind"], hidden_size=shape["hidden"], intermediate_size=shape["mlp"],
            num_hidden_layers=shape["layers"], num_key_value_heads=shape["kv_heads"],
            num_attention_heads=shape["kv_heads"] * shape["group"], vocab_size=shape["vocabulary"],
            max_position_embeddings=tokens + 8192, tie_word_embeddings=False)
        config.name_or_path = self.tokenizer
        with torch.device(self.device):
            model = transformers.AutoModelForCausalLM.from_config(
                config, torch_dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        model.config.name_or_path = self.tokenizer
        ids = torch.randint(0, 1000, (1, tokens), device=self.device)

        def prefill():
            cache = transformers.DynamicCache()
            model.model(input_ids=ids, past_key_values=cache)

        def compress():
            with kvpress.KVzipPress(compression_ratio=0.7)(model):
                prefill()

        with torch.inference_mode():
            prefill_seconds = self.seconds(prefill)
            compress_seconds = self.seconds(compress)
        return {"prefill_seconds": prefill_seconds, "compress_seconds": compress_seconds,
                "compress_over_prefill": compress_seconds / prefill_seconds}


def load_torch(device):
    """PyTorch and the device's name, or why not."""
    try:
        import torch
    except ImportError as error:
        return None, f"no PyTorch: {error}"
    if not torch.cuda.is_available() or device >= torch.cuda.device_count():
        return None, f"PyTorch sees no GPU {device}"
    return torch, torch.cuda.get_device_name(device)


def parse(arguments):
    known = ", ".join(MODELS)
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0],
                                     epilog=__doc__.split("\n\n", 2)[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="append a row per line")
    parser.add_argument("--resume", action="store_true", help="measure what FILE does not hold yet")
    parser.add_argument("--device", type=int, default=0, metavar="N")
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {known}")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)), help="tokens")
    parser.add_argument("--rows", default="", metavar="PREFIX", help="only rows that start so")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokenizer", metavar="FOLDER", help="for kvpress")
    parser.add_argument("--list", action="store_true", help="print the rows and measure nothing")
    options = parser.parse_args(arguments)
    options.models = options.models.split(",")
    for model in options.models:
        if model not in MODELS:
            parser.error(f"unknown model {model}; known: {known}")
    try:
        options.contexts = [int(tokens) for tokens in options.contexts.split(",")]
    except ValueError:
        parser.error(f"--contexts {options.contexts}: not numbers")
    if min(options.contexts) < 1 or options.runs < 1 or options.device < 0:
        parser.error("contexts and runs are above 0, a device is not below")
    if options.resume and not options.json:
        parser.error("--resume needs --json")
    options.rows = [prefix for prefix in options.rows.split(",") if prefix] or [""]
    return options


def main(arguments=None):
    options = parse(arguments)
    names = [name for name in row_names(options.models, options.contexts, bool(options.tokenizer))
             if name.startswith(tuple(options.rows))]
    if not names:
        print(f"no row starts with {' or '.join(options.rows)}"
              + ("" if options.tokenizer else "; without --tokenizer there are none of kvpress"),
              file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(names))
        return 0
    torch, device = load_torch(options.device)
    if torch is None:
        print(f"skipped: {device}")
        return SKIPPED
    if not options.tokenizer:
        print("without --tokenizer: no rows of kvpress", file=sys.stderr)
    try:
        results = Results(options.json, options.resume, device, build_of(torch, options.runs))
    except (FileExistsError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    peer = Torch(torch, options.device, options.runs, options.tokenizer)
    return 1 if run_rows(names, results, peer.measure) else 0


if __name__ == "__main__":
    sys.exit(main())
