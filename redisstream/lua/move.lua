-- Puts an entry into another stream in place of one that a consumer holds.
--
-- KEYS: the stream, the other one
-- ARGV: group, id, how many names the holder has, the names, fields and values
-- Returns: the id of the new entry, or nothing if the consumer does not hold
--          the old one
local names = tonumber(ARGV[3])
for i = 4, 3 + names do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1, ARGV[i]) > 0 then
    local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 4 + names))
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
    return id
  end
end
return false
