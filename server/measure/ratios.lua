-- For wrk: requests of `batch` texts. Cold, no text ever comes twice; warm, there are `requests`
-- different ones: wrk -s ratios.lua URL -- MODEL cold|warm BATCH REQUESTS RUN
local body, number, model, mode, batch, requests, run

function init(args)
  model, mode, batch, requests, run = args[1], args[2], tonumber(args[3]), tonumber(args[4]), args[5]
  number = 0
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer any"
end

-- As ratios.py has it in `body_of`.
function request()
  local name = mode == "cold" and run .. "-" .. number or "warm-" .. number % requests
  number = number + 1
  local texts = {}
  for i = 1, batch do
    texts[i] = string.format('"text %d of request %s, about as long as a sentence is that somebody looks for"', i, name)
  end
  return wrk.format(nil, nil, nil, string.format(
    '{"model":"%s","encoding_format":"base64","input":[%s]}', model, table.concat(texts, ",")))
end
