-- Reads of keys that `ringkeep bench` has filled: 16 digits, even numbers. DEPTH requests in one write.
local count, depth = tonumber(os.getenv("KEYS") or 1000000), tonumber(os.getenv("DEPTH") or 1)
local path = os.getenv("GET") or "/get?key=%s"
local requests, next_request = {}, 0

function init()
  math.randomseed(tonumber(os.getenv("SEED") or 1))
  for i = 1, 20000 do
    local part = {}
    for j = 1, depth do
      part[j] = wrk.format("GET", string.format(path, string.format("%016d", 2 * math.random(0, count - 1))))
    end
    requests[i] = table.concat(part)
  end
end

function request()
  next_request = next_request % #requests + 1
  return requests[next_request]
end
