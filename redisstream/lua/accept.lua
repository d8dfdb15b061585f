-- Accepts an entry as its publisher's terms say: later, or once.
--
-- KEYS: the stream, the sorted set of what is due later, that of names, the hash
--       of counts
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
  redis.call('ZADD', KEYS[3], now + window, name)
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
  if redis.call('ZCARD', KEYS[3]) > most then
    redis.call('ZPOPMIN', KEYS[3])
    redis.call('HINCRBY', KEYS[4], 'forgotten', 1)
  end
  redis.call('PEXPIREAT', KEYS[3], string.format('%.0f', redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2]))
end
if delay > 0 then
  return '0-0'
end
return reply
