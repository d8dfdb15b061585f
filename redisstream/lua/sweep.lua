-- Removes consumers that hold nothing and have not been heard of for long.
--
-- KEYS: the stream
-- ARGV: group, milliseconds
-- Returns: how many were removed
local stream, group, long = KEYS[1], ARGV[1], tonumber(ARGV[2])
local n = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local c = {}
  for i = 1, #info, 2 do
    c[info[i]] = info[i + 1]
  end
  if c['name'] ~= '~waiting' and c['pending'] == 0 and c['idle'] > long then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, c['name'])
    n = n + 1
  end
end
return n
