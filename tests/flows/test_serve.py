"""transformers' own server, on the loopback address, answers from an exported model as transformers in process does."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.export import export
from infra.settings import use_settings
from infra.store import current_store
from tasks.curate.load import LoadParameters, load
from tasks.train.scratch import ScratchParameters, scratch
from tasks.train.sft import SftParameters, sft

NEEDED = ("fastapi", "uvicorn", "openai")  # what `transformers serve` imports beside transformers
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
PROMPTS = [f"say {number}" for number in range(20)]
TOKENS = 24

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(bool(MISSING), reason=f"transformers' server needs {', '.join(MISSING)} (dependency group dev)"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[str]:
    """Serve a folder on a free port of the loopback address until the end of the block; yield its address."""
    address = f"127.0.0.1:{free_port()}"
    host, _, port = address.partition(":")
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, "--host", host, "--port", port, "--device", "cpu"], env=environment, stdout=file, stderr=file
        )
        try:
            until = time.monotonic() + 200
            while not healthy(address):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            yield f"http://{address}"
        finally:
            server.terminate()
            server.wait(30)


def healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError):
        return False


def ask(address: str, model: Path, prompt: str) -> str:
    body = {"model": str(model), "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS}
    request = urllib.request.Request(  # noqa: S310
        f"{address}/v1/chat/completions",
        json.dumps({**body, "temperature": 0}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        told: str = json.loads(answer.read())["choices"][0]["message"]["content"]
        return told


def in_process(folder: Path) -> list[str]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    told = []
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)[0, ids["input_ids"].shape[1] :]
        told.append(tokenizer.decode(made, skip_special_tokens=True))
    return told


def test_the_server_answers_as_transformers_in_process(tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "completion": f"{prompt[4:]} is said"} for prompt in PROMPTS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(tmp_path / "rows.jsonl"), "licence": "CC0-1.0", "layout": "prompt-completion"}
    with use_settings(store=tmp_path / "store", workers=1):
        start = scratch(ScratchParameters(width=32, heads=2, feed_forward=64))
        some = SftParameters(max_steps=60, batch_size=20, learning_rate=1e-2, threads=1)
        model = sft(some, load(LoadParameters.model_validate({"sources": [source]})), start)
        export(current_store(), model, tmp_path / "model")
    wanted = in_process(tmp_path / "model")
    assert len(set(wanted)) > 2
    with serving(tmp_path / "model", tmp_path / "log") as address:
        assert [ask(address, tmp_path / "model", prompt) for prompt in PROMPTS] == wanted
