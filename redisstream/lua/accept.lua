-- Accepts an entry as its publisher's terms say: later, or once.
--
-- KEYS: the stream, the sorted set of what is due later, that of names by when
--       they end, the hash of counts, the sorted set of names by age
-- ARGV: milliseconds until it is due or 0; the name under which it is stored
--       once or ""; for how many milliseconds; how many names are remembered;
--       fields and values
-- Returns: the id of the entry, 0-0 if it is due later, 0-1 if it was there
local time = redis.call('TIME')
local now = time[1] * 1000 + math.ceil(time[2] / 1000)
local delay, name, window, most = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

if name ~= '' then
  local till = redis.call('ZSCORE', KEYS[3], name)
  if till and tonumber(till) > now then
    redis.call('HINCRBY', KEYS[4], 'duplicates', 1)
    return '0-1'
  end
end

-- The first write is refused if the server has no memory left, and then nothing is done.
local reply
if delay > 0 then
  -- The same message is the same member, so that one sent again is there once.
  reply = redis.pcall('ZADD', KEYS[2], now + delay, cmsgpack.pack({unpack(ARGV, 5)}))
else
  reply = redis.pcall('XADD', KEYS[1], '*', unpack(ARGV, 5))
end
if type(reply) == 'table' and reply.err then
  return reply
end

if name ~= '' then
  for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('ZREM', KEYS[3], old)
    redis.call('ZREM', KEYS[5], old)
  end
  redis.call('ZADD', KEYS[3], now + window, name)
  redis.call('ZADD', KEYS[5], now, name)
  while redis.call('ZCARD', KEYS[3]) > most do
    local oldest = redis.call('ZPOPMIN', KEYS[5])[1]
    if not oldest then
      break
    end
    if redis.call('ZREM', KEYS[3], oldest) == 1 then
      redis.call('HINCRBY', KEYS[4], 'forgotten', 1)
    end
  end
  local last = string.format('%.0f', redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2])
  redis.call('PEXPIREAT', KEYS[3], last)
  redis.call('PEXPIREAT', KEYS[5], last)
end
if delay > 0 then
  return '0-0'
end
return reply
