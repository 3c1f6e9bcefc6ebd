"""Requests per second of a model asked directly, through this server (cold, warm, without a cache)
and through the proxy of litellm (cold, warm), in one run:

    python ratios.py FOLDER_OF_BINARIES [--litellm PROGRAM] [--rounds 3] [--seconds 3]

The model is `paced_model`: it takes time and no processor. Each round measures every cell once, one
after the other, so that what else the machine does falls on all. wrk is the client. Prints the table
of docs/server.md: medians of the rounds, and how often the model was called meanwhile."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

parser = argparse.ArgumentParser()
parser.add_argument("binaries")
parser.add_argument("--litellm")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--seconds", type=int, default=3)
parser.add_argument("--batches", default="1,32")
parser.add_argument("--connections", default="1,16,128")
parser.add_argument("--at-least", type=float, default=0, help="fail where warm is not so many times no cache")
parser.add_argument("--port", type=int, default=18431)
options = parser.parse_args()

MODEL = "paced"
# Fewer texts in all than the 200 entries that litellm's cache in memory has room for.
REQUESTS = {1: 64, 32: 4}
here = os.path.dirname(os.path.abspath(__file__))
folder = tempfile.TemporaryDirectory()
processes = []


def start(command, **more):
    log = open(os.path.join(folder.name, f"log{len(processes)}"), "w")
    process = subprocess.Popen(command, stderr=log, text=True, **more)
    processes.append(process)
    return process


def listening(command):
    line = start(command, stdout=subprocess.PIPE).stdout.readline().strip()
    return line.removeprefix("listening on ")


def body_of(batch, name):
    texts = [
        f"text {i} of request {name}, about as long as a sentence is that somebody looks for"
        for i in range(1, batch + 1)
    ]
    return {"model": MODEL, "encoding_format": "base64", "input": texts}


def ask(base, body):
    headers = {"content-type": "application/json", "authorization": "Bearer any"}
    request = urllib.request.Request(f"{base}/v1/embeddings", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return [item["embedding"] for item in json.load(response)["data"]]


def model_calls():
    with urllib.request.urlopen(f"{model}/calls", timeout=60) as response:
        return json.load(response)["calls"]


def quiet():
    """The calls of the model once there is none under way: loads go on when their clients have left."""
    calls, since = model_calls(), time.monotonic()
    while time.monotonic() - since < 0.4:
        time.sleep(0.05)
        now = model_calls()
        if now != calls:
            calls, since = now, time.monotonic()
    return calls


def litellm_proxy(upstream):
    config = os.path.join(folder.name, "litellm.yaml")
    with open(config, "w") as file:
        json.dump(
            {
                "model_list": [
                    {
                        "model_name": MODEL,
                        "litellm_params": {
                            "model": f"openai/{MODEL}", "api_base": f"{upstream}/v1", "api_key": "any",
                        },
                    }
                ],
                "litellm_settings": {
                    "cache": True,
                    "cache_params": {
                        "type": "local", "supported_call_types": ["embedding", "aembedding"],
                    },
                },
            },
            file,
        )
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR",
                   # On the loopback interface, for some minutes; so it has no keys to look at.
                   "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    command = [options.litellm, "--config", config, "--host", "127.0.0.1", "--port", str(options.port)]
    command += ["--num_workers", "1"]
    process = start(command, env=environment, stdout=subprocess.DEVNULL)
    base = f"http://127.0.0.1:{options.port}"
    for _ in range(240):
        try:
            ask(base, body_of(1, "first"))
            return base
        except OSError:
            assert process.poll() is None, "litellm has ended"
            time.sleep(0.5)
    raise SystemExit("litellm does not start")


def measure(base, mode, batch, connections, run):
    requests = REQUESTS[batch]
    if mode == "warm":
        for number in range(requests):
            ask(base, body_of(batch, f"warm-{number}"))
    before = quiet()
    output = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{options.seconds}s", "--timeout", "60s", "-s",
         os.path.join(here, "ratios.lua"), f"{base}/v1/embeddings", "--", MODEL, mode, str(batch),
         str(requests), run],
        capture_output=True, text=True, check=True,
    ).stdout
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", output)
    rate = float(re.search(r"Requests/sec: +([0-9.]+)", output)[1])
    return rate, quiet() - before, wrong and wrong[0]


try:
    model = listening([os.path.join(options.binaries, "examples/paced_model")])
    server = [os.path.join(options.binaries, "embedding-cache-server"), "--listen", "127.0.0.1:0",
              "--upstream", model, "--model", f"{MODEL}=384"]
    cached, uncached = listening(server), listening([*server, "--no-cache"])
    sides = [("direct", model, "cold"), ("no cache", uncached, "cold"), ("cold", cached, "cold"),
             ("warm", cached, "warm")]
    if options.litellm:
        proxy = litellm_proxy(model)
        sides += [("litellm cold", proxy, "cold"), ("litellm warm", proxy, "warm")]
    # The same answers from all.
    assert len({str(ask(base, body_of(2, "same"))) for _, base, _ in sides}) == 1

    cells = [(int(b), int(c)) for b in options.batches.split(",") for c in options.connections.split(",")]
    seen = {}
    for turn in range(options.rounds):
        for batch, connections in cells:
            order = sides if turn % 2 == 0 else sides[::-1]
            for name, base, mode in order:
                run = f"{name}-{batch}-{connections}-{turn}".replace(" ", "")
                got = measure(base, mode, batch, connections, run)
                seen.setdefault((batch, connections, name), []).append(got)
                print(turn, batch, connections, name, got, file=sys.stderr)

    names = [name for name, _, _ in sides]
    print("| texts, connections | " + " | ".join(names) + " |")
    print("|--:|" + "--:|" * len(names))
    for batch, connections in cells:
        line = f"| {batch}, {connections} |"
        for name in names:
            rounds = seen[batch, connections, name]
            rate = statistics.median(rate for rate, _, _ in rounds)
            wrong = next((wrong for _, _, wrong in rounds if wrong), None)
            line += f" {rate:,.0f}" + (f" ({wrong})" if wrong else "") + " |"
        print(line)
    for batch, connections in cells:
        rates = [statistics.median(rate for rate, _, _ in seen[batch, connections, name])
                 for name in ("warm", "no cache")]
        assert rates[0] >= options.at_least * rates[1], (batch, connections, rates)
    for name in names:
        if name.endswith("warm"):
            calls = sum(c for (_, _, n), rounds in seen.items() if n == name for _, c, _ in rounds)
            print(f"{name}: {calls} calls of the model while measured")
            assert calls == 0 or name != "warm", "what is warm cost calls"
finally:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(20)
