-- Puts an entry into another stream in place of one that a consumer holds.
--
-- KEYS: the stream, the other one
-- ARGV: group, id, a group to make in the other stream or "", how many names the
--       holder has, the names, fields and values
-- Returns: the id of the new entry, or nothing if the consumer does not hold
--          the old one
local names = tonumber(ARGV[4])
for i = 5, 4 + names do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1, ARGV[i]) > 0 then
    local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 5 + names))
    if ARGV[3] ~= '' then
      redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[3], '0')
    end
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
    return id
  end
end
return false
