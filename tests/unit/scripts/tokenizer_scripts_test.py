#!/usr/bin/env python3
"""Tests scripts/make_prompt_profile.py and scripts/tokenize.py.

    tokenizer_scripts_test.py plain         what needs no package
    tokenizer_scripts_test.py tokenizers    the rest, against tests/golden/profiles; exit 77 without the package `tokenizers`
"""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "scripts"
TOKENIZER = ROOT / "tests" / "fixtures" / "tokenizer"
PROFILES = ROOT / "tests" / "golden" / "profiles"
sys.path.insert(0, str(SCRIPTS))

import make_prompt_profile as profiles  # noqa: E402
import token_ids  # noqa: E402
from checkpoint_tokenizer import Problem  # noqa: E402


def run(script, *arguments, text=b"", without=None):
    """(exit status, standard output, standard error). `without`: a package that cannot be imported."""
    start = [sys.executable, "-B", str(SCRIPTS / script)]
    if without is not None:
        code = (f"import runpy, sys; sys.modules[{without!r}] = None; sys.argv = sys.argv[1:]; "
                f"sys.path.insert(0, {str(SCRIPTS)!r}); runpy.run_path(sys.argv[0], run_name='__main__')")
        start = [sys.executable, "-B", "-c", code, str(SCRIPTS / script)]
    done = subprocess.run([*start, *map(str, arguments)], input=text, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


class PlainTest(unittest.TestCase):
    def test_family_follows_model_type(self):
        for kind, name, family in (("llama", "x", "llama-3"), ("qwen2", "x", "qwen"), ("qwen3", "Qwen3-8B", "qwen-thinking"),
                                   ("qwen3", "Qwen3-4B-Instruct-2507", "qwen"), ("gemma3", "x", "gemma-3"),
                                   ("gemma3_text", "x", "gemma-3")):
            self.assertEqual(profiles.family_of({"model_type": kind}, name), family)

    def test_unknown_model_type_names_it_and_the_way_out(self):
        with self.assertRaisesRegex(Problem, '"mamba".*--family'):
            profiles.family_of({"model_type": "mamba"}, "x")

    def test_texts_keep_the_instruction_and_the_trailing_space(self):
        texts = profiles.texts_of_family("qwen-thinking", "", profiles.INSTRUCTION)
        self.assertTrue(texts["prefix"].endswith("<|im_start|>user\nGiven the context, answer to the following question or "
                                                 "request without explanation.\n\n"))
        self.assertEqual(texts["postfix"], "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
        self.assertTrue(texts["later_prompt"].endswith("starting with "))
        self.assertEqual(profiles.texts_of_family("other", "<s>", "")["prefix"], "<s>")
        self.assertEqual(profiles.texts_of_family("other", "", "")["postfix"], "\n\nAnswer: ")

    def test_kvpress_without_a_chat_template(self):
        texts = profiles.texts_of_kvpress(None, {})
        self.assertEqual((texts["prefix"], texts["postfix"]), ("", "\n"))
        self.assertTrue(texts["later_prompt"].endswith("starting with"))

    def make(self, required=(), vocabulary=None):
        return profiles.make_profile("n", {"prefix": "ab<s>", "postfix": ""}, lambda text: [len(text)], {"<s>": 3, "</s>": 4},
                                     required, vocabulary, 2000)

    def test_profile_has_the_fields_and_used_special_tokens(self):
        profile = self.make(("<s>",), 6)
        self.assertEqual(profile, {"version": 1, "name": "n", "prefix": [5], "postfix": [], "hint_tokens": 8,
                                   "chunk_tokens": 2000, "special_tokens": {"<s>": 3}})
        self.assertEqual(json.loads(profiles.to_text(profile)), profile)

    def test_profile_refuses_a_foreign_tokenizer(self):
        with self.assertRaisesRegex(Problem, "no special token <eot>"):
            self.make(("<eot>",))
        with self.assertRaisesRegex(Problem, "prefix has id 5.*vocab_size 5"):
            self.make(vocabulary=5)

    def test_default_vocabulary_of_a_nested_config(self):
        self.assertEqual(profiles.vocabulary_of({"text_config": {"vocab_size": 7}}), 7)
        self.assertIsNone(profiles.vocabulary_of({"text_config": {}}))

    def test_ids_in_both_forms(self):
        for name in ("a.json", "a.u32", None):
            data = token_ids.ids_to_bytes([0, 7, 2**32 - 1], name)
            self.assertEqual(token_ids.ids_from_bytes(data, name or "-"), [0, 7, 2**32 - 1])
        self.assertEqual(token_ids.ids_to_bytes([1], "a.u32"), b"\x01\0\0\0")

    def test_bad_ids_are_named(self):
        for data, name, message in ((b"\0\0\0", "a.u32", "3 bytes"), (b"[1", "a.json", "no JSON"), (b"{}", "a.json", "no JSON array"),
                                    (b"[1, -1]", "a.json", "element 1 is -1"), (b"[1.0]", "a.json", "element 0"),
                                    (b"[true]", "a.json", "element 0"), (b"[4294967296]", "a.json", "element 0")):
            with self.assertRaisesRegex(Problem, message):
                token_ids.ids_from_bytes(data, name)

    def test_missing_folder_and_file(self):
        with tempfile.TemporaryDirectory() as folder:
            for script in ("make_prompt_profile.py", "tokenize.py"):
                status, _, error = run(script, "--model", f"{folder}/none")
                self.assertEqual((status, "no such folder" in error), (1, True), error)
                status, _, error = run(script, "--model", folder)
                self.assertEqual((status, "tokenizer.json: no such file" in error), (1, True), error)

    def test_missing_package_is_named(self):
        for script in ("make_prompt_profile.py", "tokenize.py"):
            status, _, error = run(script, "--model", TOKENIZER, without="tokenizers")
            self.assertEqual((status, "pip install tokenizers" in error), (1, True), error)

    def test_kvpress_excludes_a_family(self):
        status, _, error = run("make_prompt_profile.py", "--model", TOKENIZER, "--kvpress", "--family", "qwen")
        self.assertEqual((status, "no place" in error), (2, True), error)

    def test_scripts_folder_does_not_hide_the_standard_tokenize(self):
        code = "import tokenize, inspect; print(len(list(tokenize.generate_tokens(iter(['x = 1\\n']).__next__))))"
        done = subprocess.run([sys.executable, "-B", "-c", f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); {code}"],
                              capture_output=True, check=True)
        self.assertEqual(done.stdout.strip(), b"5")


class TokenizersTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def golden(self, name):
        return json.loads((PROFILES / name).read_text(encoding="utf-8"))

    def copy(self, **files):
        """The checkpoint with some files replaced by objects."""
        model = self.folder / "model"
        shutil.copytree(TOKENIZER, model)
        for name, value in files.items():
            (model / f"{name}.json").write_text(json.dumps(value))
        return model

    def test_profile_equals_the_golden(self):
        status, output, error = run("make_prompt_profile.py", "--model", TOKENIZER, "--out", self.folder / "p.json")
        self.assertEqual(status, 0, error)
        self.assertIn(b"prompts 'llama-3', chunks of 2000 tokens", output)
        self.assertEqual(json.loads((self.folder / "p.json").read_text()), self.golden("llama-3.json"))

    @unittest.skipIf(importlib.util.find_spec("jinja2") is None, "this Python has no package jinja2")
    def test_kvpress_profile_equals_the_golden(self):
        status, _, error = run("make_prompt_profile.py", "--model", TOKENIZER, "--kvpress", "--out", self.folder / "p.json")
        self.assertEqual(status, 0, error)
        self.assertEqual(json.loads((self.folder / "p.json").read_text()), self.golden("kvpress.json"))

    @unittest.skipIf(importlib.util.find_spec("jinja2") is None, "this Python has no package jinja2")
    def test_chat_template_that_changes_the_text_is_refused(self):
        model = self.copy(tokenizer_config={"chat_template": "{{ messages[0].content | upper }}"})
        status, _, error = run("make_prompt_profile.py", "--model", model, "--kvpress")
        self.assertEqual((status, "as it is" in error), (1, True), error)
        (model / "chat_template.jinja").write_text("{{ raise_exception('no user turns') }}")  # comes before the other
        status, _, error = run("make_prompt_profile.py", "--model", model, "--kvpress")
        self.assertEqual((status, "no user turns" in error), (1, True), error)

    def test_profile_goes_beside_the_checkpoint_and_family_can_be_said(self):
        model = self.copy(config={"model_type": "mamba", "vocab_size": 325})
        status, _, error = run("make_prompt_profile.py", "--model", model)
        self.assertEqual((status, "mamba" in error), (1, True), error)
        status, _, error = run("make_prompt_profile.py", "--model", model, "--family", "llama-3", "--instruction", "")
        self.assertEqual(status, 0, error)
        profile = json.loads((model / "kvtier_prompt_profile.json").read_text())
        whole = self.golden("llama-3.json")["prefix"]
        self.assertEqual(profile["prefix"], whole[:37])

    def test_foreign_family_and_foreign_tokenizer_are_refused(self):
        status, _, error = run("make_prompt_profile.py", "--model", TOKENIZER, "--family", "qwen", "--out", self.folder / "p.json")
        self.assertEqual((status, "no special token <|im_start|>" in error), (1, True), error)
        model = self.copy(config={"model_type": "llama", "vocab_size": 300})
        status, _, error = run("make_prompt_profile.py", "--model", model)
        self.assertEqual((status, "vocab_size 300" in error), (1, True), error)
        self.assertFalse((model / "kvtier_prompt_profile.json").exists())

    def test_broken_tokenizer_is_refused(self):
        model = self.copy(tokenizer={"version": "1.0"})
        status, _, error = run("tokenize.py", "--model", model, text=b"x")
        self.assertEqual((status, "tokenizer.json" in error and "Traceback" not in error), (1, True), error)

    def test_text_to_ids_and_back(self):
        golden = self.golden("text.json")
        text = golden["text"].encode()
        for name in ("ids.json", "ids.u32"):
            (self.folder / "text").write_bytes(text)
            status, _, error = run("tokenize.py", "--model", TOKENIZER, self.folder / "text", "--out", self.folder / name)
            self.assertEqual(status, 0, error)
            self.assertEqual(token_ids.ids_from_bytes((self.folder / name).read_bytes(), name), golden["ids"])
            status, output, error = run("tokenize.py", "--model", TOKENIZER, "--decode", self.folder / name)
            self.assertEqual((status, output), (0, text), error)

    def test_literal_keeps_special_tokens_text(self):
        golden = self.golden("text.json")
        status, output, error = run("tokenize.py", "--model", TOKENIZER, "--literal", text=golden["text"].encode())
        self.assertEqual(status, 0, error)
        ids = json.loads(output)
        self.assertTrue(max(ids) < 320 <= max(golden["ids"]))
        status, output, _ = run("tokenize.py", "--model", TOKENIZER, "--decode", text=json.dumps(ids).encode())
        self.assertEqual((status, output), (0, golden["text"].encode()))

    def test_bad_input_is_named(self):
        for text, arguments, message in ((b"a\xff", (), "no UTF-8 at byte 1"), (b"[325]", ("--decode",), "id 325"),
                                         (b"{}", ("--decode",), "no JSON array")):
            status, _, error = run("tokenize.py", "--model", TOKENIZER, *arguments, text=text)
            self.assertEqual((status, message in error), (1, True), error)


def main():
    part = sys.argv[1] if len(sys.argv) == 2 else ""
    if part not in ("plain", "tokenizers"):
        sys.exit(__doc__)
    if part == "tokenizers" and importlib.util.find_spec("tokenizers") is None:
        print("skipped: this Python has no package `tokenizers`")
        sys.exit(77)
    case = PlainTest if part == "plain" else TokenizersTest
    result = unittest.TextTestRunner(verbosity=1).run(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    sys.exit(0 if result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
