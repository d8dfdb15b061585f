-- Gives back all that a consumer holds and removes it from its group.
--
-- KEYS: the stream, the hash of losses
-- ARGV: group, the idle time of what is due, how many losses the consumer knew
--       of and had not told, the consumer's names
-- Returns: how many entries went back
local stream, losses, group, idle = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local n, lost = 0, tonumber(ARGV[3])
for i = 4, #ARGV do
  while true do
    local rows = redis.call('XPENDING', stream, group, '-', '+', 1000, ARGV[i])
    if #rows == 0 then
      break
    end
    local args = {'XCLAIM', stream, group, '~waiting', 0}
    for _, row in ipairs(rows) do
      args[#args + 1] = row[1]
    end
    args[#args + 1] = 'IDLE'
    args[#args + 1] = idle
    args[#args + 1] = 'JUSTID'
    local back = #redis.call(unpack(args))
    n, lost = n + back, lost + #rows - back -- of entries that are gone nothing comes back
  end
  redis.call('XGROUP', 'DELCONSUMER', stream, group, ARGV[i])
end
if lost > 0 then
  redis.call('HINCRBY', losses, group, lost)
end
return n
