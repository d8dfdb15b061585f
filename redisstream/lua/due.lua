-- Adds what is due to a stream. Whoever runs it, each message is added once.
--
-- KEYS: the stream, the sorted set of what is due later, the stream set aside
-- ARGV: how many at most, how many entries to keep aside
-- Returns: how many were due, milliseconds until the next one is or -1
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function message(row)
  local ok, fields = pcall(cmsgpack.unpack, row)
  if not ok or type(fields) ~= 'table' or #fields == 0 or #fields % 2 == 1 then
    return nil
  end
  for _, field in ipairs(fields) do
    if type(field) ~= 'string' then
      return nil
    end
  end
  return fields
end

local n, bytes = 0, 0
while n < tonumber(ARGV[1]) and bytes < 1048576 do -- the server's other clients wait meanwhile
  local row = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1)[1]
  if not row then
    break
  end
  n, bytes = n + 1, bytes + #row
  local fields = message(row)
  if fields then
    redis.call('XADD', KEYS[1], '*', unpack(fields))
  else
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[2], '*', 'echo-reason', 'no message that is due later', 'echo-entry', row)
  end
  redis.call('ZREM', KEYS[2], row)
end
local next = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if #next == 0 then
  return {n, -1}
end
return {n, math.max(0, math.ceil(next[2] - now))}
