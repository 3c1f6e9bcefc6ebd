"""Clients that people use, against a server in front of a real model:
python clients.py SERVER_URL UPSTREAM_URL NODE_SCRIPT

Every vector must be that of the model, bit for bit, cold and warm."""

import asyncio
import base64
import json
import os
import random
import subprocess
import sys
import urllib.request

import numpy as np

server, upstream, node_script = sys.argv[1:]
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
MODEL = "multilingual-e5-small"

texts = [
    "a red apple",
    "a green pear",
    "Der Hund schläft.",
    "東京の天気",
    "été \\ \"quoted\" \u2028 and a tab\there",
    "one word",
    "The quick brown fox jumps over the lazy dog. " * 20,
]


def ask(base, body):
    headers = {"content-type": "application/json", "authorization": "Bearer any"}
    request = urllib.request.Request(f"{base}/embeddings", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response), response.headers


def upstream_calls():
    with urllib.request.urlopen(f"{upstream}/calls", timeout=60) as response:
        return json.load(response)["calls"]


def bits(vector):
    return np.asarray(vector, dtype=np.float32).tobytes()


def vectors_of(answer):
    return [bits(item["embedding"]) for item in answer["data"]]


truth = dict(zip(texts, vectors_of(ask(upstream, {"model": MODEL, "input": texts})[0])))


def check(who, asked, vectors):
    assert len(vectors) == len(asked), (who, len(vectors))
    for text, vector in zip(asked, vectors):
        assert bits(vector) == truth[text], f"{who}: another vector for {text[:30]!r}"


def lists():
    """All, with duplicates and in another order."""
    shuffled = texts * 2
    random.Random(7).shuffle(shuffled)
    return [texts, shuffled, [texts[0]] * 5]


FORMS = ({"encoding_format": "base64"}, {"encoding_format": "float"}, {})


def forget():
    request = urllib.request.Request(
        f"{server.removesuffix('/v1')}/cache?model={MODEL}", method="DELETE"
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["removed"]


def openai_client():
    """Base64 where nothing is said, which the client decodes itself."""
    import openai

    client = openai.OpenAI(base_url=server, api_key="any", max_retries=0)

    def create(asked, form):
        answer = client.embeddings.create(model=MODEL, input=asked, **form)
        vectors = [item.embedding for item in answer.data]
        if form.get("encoding_format") == "base64":
            vectors = [np.frombuffer(base64.b64decode(vector), dtype="<f4") for vector in vectors]
        return vectors

    yield from ((create, form) for form in FORMS)
    assert [model.id for model in client.models.list().data] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL

    async def many():
        client = openai.AsyncOpenAI(base_url=server, api_key="any", max_retries=0)
        calls = [client.embeddings.create(model=MODEL, input=asked) for asked in lists() * 5]
        return await asyncio.gather(*calls)

    for asked, answer in zip(lists() * 5, asyncio.run(many())):
        check("openai, async", asked, [item.embedding for item in answer.data])


def openai_node():
    def create(asked, form):
        question = {"model": MODEL, "input": asked, **form}
        run = subprocess.run(
            ["node", node_script, server], input=json.dumps([question]), capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        [vectors] = json.loads(run.stdout)
        return vectors

    yield from ((create, form) for form in FORMS[1:])


def langchain():
    from langchain_openai import OpenAIEmbeddings

    # Its default cuts texts into token ids for OpenAI's models; others need the texts.
    client = OpenAIEmbeddings(
        model=MODEL, base_url=server, api_key="any", check_embedding_ctx_length=False
    )
    yield (lambda asked, _: client.embed_documents(asked)), {}
    check("langchain", texts[:1], [client.embed_query(texts[0])])


def llama_index():
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    client = OpenAILikeEmbedding(
        model_name=MODEL, api_base=server, api_key="any", embed_batch_size=100
    )
    yield (lambda asked, _: client.get_text_embedding_batch(asked)), {}
    check("llama-index", texts[:1], [client.get_query_embedding(texts[0])])


def litellm():
    import litellm

    def create(asked, form):
        answer = litellm.embedding(
            model=f"openai/{MODEL}", input=asked, api_base=server, api_key="any", **form
        )
        return [item["embedding"] for item in answer.data]

    yield from ((create, form) for form in FORMS[1:])


# Cold and warm, float and base64.
cold, headers = ask(server, {"model": MODEL, "input": texts})
assert headers["x-cache"] == "miss" and headers["x-usage"] == "estimated", headers
check("cold", texts, [item["embedding"] for item in cold["data"]])
warm, headers = ask(server, {"model": MODEL, "input": texts})
assert headers["x-cache"] == "hit", headers
assert warm == cold
# What the model counted for all of them together is what they sum up to.
assert cold["usage"]["prompt_tokens"] == sum(len(text.split()) + 2 for text in texts), cold["usage"]

for client in [openai_client, openai_node, langchain, llama_index, litellm]:
    for create, form in client():
        # Cold: one call of the client is one call of the model. Then warm.
        assert forget() == len(texts)
        before = upstream_calls()
        for asked in lists():
            check(client.__name__, asked, create(asked, form))
            assert upstream_calls() == before + 1, (client.__name__, asked)
        before = upstream_calls()
    assert upstream_calls() == before, "a warm request cost a call"
    print(f"{client.__name__}: every vector is the model's, cold and warm, at one call of it")
