"""The official client of OpenAI against a running server: python openai_client.py BASE_URL"""

import math
import sys

import openai

MODEL = "hashed-ngrams-768@1"


def fails(expected, call, words):
    try:
        call()
    except expected as error:
        assert words in str(error), f"{words!r} is not in {error}"
        assert error.body["message"], error.body
        return error
    raise AssertionError(f"{expected.__name__} was expected")


client = openai.OpenAI(base_url=sys.argv[1], api_key="any", max_retries=0)
create = client.embeddings.create

# The client asks for base64 unless it is told otherwise, and decodes it.
texts = ["a red apple", "a green pear", "été, 東京"]
decoded = create(model=MODEL, input=texts)
assert decoded.object == "list" and decoded.model == MODEL
assert [item.index for item in decoded.data] == [0, 1, 2]
assert all(len(item.embedding) == 768 for item in decoded.data)
assert decoded.usage.prompt_tokens == decoded.usage.total_tokens == 3 + 3 + 4, decoded.usage

# Decimal floats are the same vectors, now hits, with the same usage.
decimal = create(model=MODEL, input=texts, encoding_format="float")
for one, other in zip(decoded.data, decimal.data):
    assert all(abs(x - y) < 1e-7 for x, y in zip(one.embedding, other.embedding))
assert decimal.usage == decoded.usage
raw = create(model=MODEL, input=texts, encoding_format="base64")
assert isinstance(raw.data[0].embedding, str)

# One string, fewer dimensions, tokens.
assert len(create(model=MODEL, input="one").data) == 1
small = create(model=MODEL, input="one", dimensions=64, user="someone").data[0].embedding
assert len(small) == 64 and math.isclose(sum(x * x for x in small), 1, rel_tol=1e-4)
tokens = create(model=MODEL, input=[[1, 2, 3], [4, 5]])
assert len(tokens.data) == 2 and tokens.usage.prompt_tokens == 5
assert create(model=MODEL, input=[1, 2, 3]).data[0].embedding == tokens.data[0].embedding

# Errors are the client's own classes, with message and code.
error = fails(openai.NotFoundError, lambda: create(model="gpt", input="a"), "does not exist")
assert error.code == "model_not_found" and error.param == "model"
error = fails(openai.BadRequestError, lambda: create(model=MODEL, input=""), "empty")
assert error.type == "invalid_request_error" and error.param == "input"
fails(openai.BadRequestError, lambda: create(model=MODEL, input=[]), "empty")
fails(openai.BadRequestError, lambda: create(model=MODEL, input=["a"] * 2049), "2048")
fails(openai.BadRequestError, lambda: create(model=MODEL, input="a", dimensions=769), "768")
fails(
    openai.BadRequestError,
    lambda: create(model=MODEL, input="a", extra_body={"truncate": True}),
    "truncate",
)

print(f"openai {openai.__version__}: all answers as expected")
