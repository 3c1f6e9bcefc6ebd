"""The page in headless Chromium, twice with traffic in between, of a server with Redis and a snapshot
that is saved each second: python page.py BASE_URL CHROMIUM"""

import json
import re
import subprocess
import sys
import tempfile
import urllib.request

base, chromium = sys.argv[1:]


def embed(texts):
    body = json.dumps({"model": "hashed-ngrams-768@1", "input": texts}).encode()
    request = urllib.request.Request(
        f"{base}/v1/embeddings", body, {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).read()


def look():
    """The numbers on the page once its script has shown them."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={profile}", "--virtual-time-budget=3500", "--dump-dom", base,
        ]
        run = subprocess.run(command, capture_output=True, text=True, timeout=90)
    found = dict(re.findall(r'id="([a-z0-9-]+)"[^>]*>([^<]*)<', run.stdout))
    assert found.get("state") == "live", (found, run.stderr[-2000:])
    return found


def number(text):
    return float(re.sub(r"[^0-9.]", "", text))


embed([f"before {i}" for i in range(10)])
first = look()
for _ in range(5):
    embed([f"before {i}" for i in range(10)] + ["one more"])
second = look()
for name in ["hits", "answered", "entries", "hit-ratio", "model-calls", "bytes"]:
    print(f"{name:12} {first[name]:>12} -> {second[name]:>12}")
    assert number(second[name]) > number(first[name]), name
# Redis had nothing, and was given what the model said.
assert number(second["tier-hits"]) == 0 and second["tier-state"] == "well", second
for name in ["tier-misses", "tier-writes", "snapshot-saves"]:
    print(f"{name:15} {second[name]}")
    assert number(second[name]) > 0, name
for name in ["p50", "p99", "rps", "evictions", "joins", "call-p50", "tier-failures", "snapshot-age"]:
    print(f"{name:12} {'':>12}    {second[name]:>12}")
    assert re.search("[0-9]", second[name]), name
