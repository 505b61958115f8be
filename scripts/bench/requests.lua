-- Sends PREPARED requests in turn, DEPTH of them in one write. Their keys are those that `ringkeep bench` fills (16
-- digits, even numbers) or, with DIGITS=12, those of redis-benchmark (12 digits, all numbers). Requests other than GET
-- carry 100 bytes, half of which compress.
local count, depth = tonumber(os.getenv("KEYS") or 1000000), tonumber(os.getenv("DEPTH") or 1)
local prepared = tonumber(os.getenv("PREPARED") or 200000)
local digits = tonumber(os.getenv("DIGITS") or 16)
local step = digits == 16 and 2 or 1
local method, target = os.getenv("METHOD") or "GET", os.getenv("TARGET") or "/get?key=%s"
local requests, next_request = {}, 0

local function value()
  local letters = {}
  for i = 1, 50 do
    letters[i] = string.char(math.random(97, 122))
  end
  return table.concat(letters) .. string.rep("v", 50)
end

function init()
  math.randomseed(tonumber(os.getenv("SEED") or 1))
  for i = 1, prepared / depth do
    local part = {}
    for j = 1, depth do
      local key = string.format("%0" .. digits .. "d", step * math.random(0, count - 1))
      part[j] = wrk.format(method, string.format(target, key), nil, method ~= "GET" and value() or nil)
    end
    requests[i] = table.concat(part)
  end
end

function request()
  next_request = next_request % #requests + 1
  return requests[next_request]
end
