"""Bad connections by the thousand, a bad client among eight, a stalled model beside a good one, and
a half-sent request at the end: python rig.py BINARY [SECONDS]

Says what it saw; fails if a good client is not served, if memory passes the documented sum, or if
something is not given back."""

import asyncio
import json
import resource
import signal
import subprocess
import sys
import time

binary = sys.argv[1]
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 8
MODEL = "hashed-ngrams-768@1"
MIB = 1 << 20

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(16_000, hard), hard))


class Server:
    def __init__(self, *arguments):
        command = [binary, "--listen", "127.0.0.1:0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        line = self.process.stdout.readline().decode().strip()
        host, port = line.removeprefix("listening on http://").split(":")
        self.address = (host, int(port))

    def memory(self):
        """Resident bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        self.process.wait(60)
        return time.monotonic() - began


def body_of(model, inputs, **more):
    return json.dumps({"model": model, "input": inputs, **more}).encode()


def request_of(body, path="/v1/embeddings"):
    head = f"POST {path} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader):
    """Status and body of one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    length = next(int(l.split(":")[1]) for l in lines if l.lower().startswith("content-length"))
    return int(lines[0].split()[1]), await reader.readexactly(length)


class Client:
    """One connection that is kept."""

    async def connect(self, server):
        self.reader, self.writer = await asyncio.open_connection(*server.address)
        return self

    async def ask(self, body, path="/v1/embeddings"):
        self.writer.write(request_of(body, path))
        return await asyncio.wait_for(answer(self.reader), 60)


async def get(server, path):
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".encode())
    status, body = await answer(reader)
    writer.close()
    return status, body


async def stats(server):
    return json.loads((await get(server, "/stats"))[1])


async def until(server, what, condition, patience=60):
    began = time.monotonic()
    while not condition(await stats(server)):
        assert time.monotonic() - began < patience, (what, await stats(server))
        await asyncio.sleep(0.1)


async def connections():
    cache, buffers = 64, 256
    limits = ["--cache-mb", str(cache), "--buffer-mb", str(buffers), "--max-answer-mb", "64"]
    server = Server(*limits, "--write-timeout", "20s", "--header-timeout", "20s")
    texts = [f"text number {i} of many" for i in range(2048)]
    good = await Client().connect(server)
    # Warm: the vectors, and one answer of the widest kind.
    assert (await good.ask(body_of(MODEL, texts)))[0] == 200
    await asyncio.sleep(1)
    before = server.memory()
    held = []

    async def hold(data):
        reader, writer = await asyncio.open_connection(*server.address, limit=1024)
        if data:
            writer.write(data)
            await writer.drain()
        # Read by nobody: the transport stops once its small buffer is full.
        held.append(writer)

    wide = request_of(body_of(MODEL, texts))
    kinds = [(5000, b""), (600, b"POST /v1/embeddings HTTP/1.1\r\nhost: h\r\nx-half"), (120, wide)]
    # HTTP/2 with closed windows: 64 times the preface and settings that say so.
    closed = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0"
    kinds.append((64, closed))
    for count, data in kinds:
        for start in range(0, count, 100):
            await asyncio.gather(*(hold(data) for _ in range(min(100, count - start))))
    peak, served = server.memory(), 0
    until_when = time.monotonic() + 3
    while time.monotonic() < until_when:
        peak = max(peak, server.memory())
        status, text = await good.ask(body_of(MODEL, f"good {served}"))
        assert status == 200, text
        served += 1
    now = await stats(server)
    # The sum of docs/server.md: the cache and what it takes beside, the buffers, 24 KB for each connection, and
    # what the process takes by itself.
    allowed = 1.4 * cache * MIB + buffers * MIB + 24_000 * len(held) + 64 * MIB
    print(
        f"{len(held)} bad connections: {served} good requests served beside them; memory "
        f"{before / MIB:.0f} MiB before, {peak / MIB:.0f} at most, {allowed / MIB:.0f} by the sum; "
        f"{now['requests']['in_flight']} permits, {now['requests']['buffer_bytes'] / MIB:.0f} MiB of buffers"
    )
    assert peak < allowed, (peak, allowed)
    # Slow readers and half-sent headers lose their connections though they stay.
    given_back = lambda s: s["requests"]["in_flight"] == 0 and s["requests"]["buffer_bytes"] == 0
    await until(server, "permits and buffers come back", given_back)
    for writer in held:
        writer.transport.abort()
    began = time.monotonic()
    while server.memory() > before + 32 * MIB:
        assert time.monotonic() - began < 30, f"{server.memory() / MIB:.0f} MiB are not given back"
        await asyncio.sleep(0.2)
    print(f"all given back: memory {server.memory() / MIB:.0f} MiB")
    server.stop()


async def upstream():
    """A model that takes 20 ms a call, fails at bad inputs, and stalls for models called so."""

    async def handle(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                question = json.loads(await reader.readexactly(length))
                if question["model"].startswith("stalled"):
                    await asyncio.sleep(3600)
                await asyncio.sleep(0.02)
                if any("bad" in text for text in question["input"]):
                    status, value = "500 Oops", {"error": {"message": "a bad input"}}
                else:
                    data = [
                        {"index": i, "embedding": [float(len(text)), 1.0]}
                        for i, text in enumerate(question["input"])
                    ]
                    status, value = "200 OK", {"data": data}
                body = json.dumps(value).encode()
                head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def good_client(server, model, name, took):
    client = await Client().connect(server)
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        inputs = [f"good {name} {number} {i}" for i in range(1 + number % 5)]
        began = time.monotonic()
        status, text = await client.ask(body_of(model, inputs))
        took.append(time.monotonic() - began)
        assert status == 200, text
        number += 1


async def bad_client(server, end):
    client = await Client().connect(server)
    number = 0
    while time.monotonic() < end:
        status, _ = await client.ask(body_of("good", [f"fine {number}", f"bad {number}"]))
        assert status != 200
        number += 1


async def stalled_client(server, end):
    # Each waits for its time-out and comes again.
    client = await Client().connect(server)
    number = 0
    while time.monotonic() < end:
        try:
            await client.ask(body_of("stalled", f"{id(client)} {number}"))
        except (asyncio.TimeoutError, asyncio.IncompleteReadError):
            client = await Client().connect(server)
        number += 1


async def beside(what, make_bad):
    """Seven good clients alone, then beside what is bad."""
    slowest = []
    for bad in (0, 1):
        backend, url = await upstream()
        server = Server("--upstream", url, "--upstream-timeout", "5s", "--request-timeout", "10s")
        took = []
        end = time.monotonic() + seconds
        others = [asyncio.ensure_future(task) for task in (make_bad(server, end) if bad else [])]
        await asyncio.gather(*(good_client(server, "good", i, took) for i in range(7)))
        took.sort()
        slowest.append((took[len(took) // 2], took[int(0.99 * len(took))], took[-1], len(took)))
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        server.stop()
        backend.close()
    (p50, p99, most, count), (p50b, p99b, mostb, countb) = slowest
    print(
        f"{what}: none of {countb} requests of the good clients failed; median {p50b * 1e3:.0f} ms "
        f"(alone {p50 * 1e3:.0f}), 99th percentile {p99b * 1e3:.0f} ({p99 * 1e3:.0f}), "
        f"slowest {mostb * 1e3:.0f} ({most * 1e3:.0f})"
    )
    # Twice the usual time, and what a busy machine adds to anything.
    assert p50b < 2 * p50 and p99b < 2 * p99 + 0.1, slowest


async def half_sent():
    server = Server("--shutdown-grace", "60s")
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(b"POST /v1/embeddings HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n"
                 b"content-length: 100\r\n\r\n{")
    headers, other = await asyncio.open_connection(*server.address)
    other.write(b"POST /v1/embeddings HTTP")
    await until(server, "the body is waited for", lambda s: s["requests"]["in_flight"] == 1)
    took = server.stop()
    print(f"SIGTERM with two half-sent requests: ended after {took:.2f} s, of 60 s of grace")
    assert took < 10 and server.process.returncode == 0


async def main():
    await connections()
    await beside("one bad client", lambda server, end: [bad_client(server, end)])
    await beside(
        "40 clients of a stalled model",
        lambda server, end: [stalled_client(server, end) for _ in range(40)],
    )
    await half_sent()


asyncio.run(main())
