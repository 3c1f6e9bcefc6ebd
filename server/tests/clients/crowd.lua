-- For wrk: each request asks for one text out of 3,000, in an order of the thread's own.
local texts = 3000
local thread = 0

function setup(thread_)
  thread_:set("seed", thread)
  thread = thread + 1
end

function init()
  math.randomseed(seed + 1)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  local body = string.format(
    '{"model":"hashed-ngrams-768@1","encoding_format":"base64","input":"text number %d"}',
    math.random(texts))
  return wrk.format(nil, nil, nil, body)
end
