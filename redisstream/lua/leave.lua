-- Gives back all that a consumer holds and removes it from its group.
--
-- KEYS: the stream
-- ARGV: group, the idle time of what is due, the consumer's names
-- Returns: how many entries went back
local stream, group, horizon = KEYS[1], ARGV[1], ARGV[2]
local n = 0
for i = 3, #ARGV do
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
    args[#args + 1] = horizon
    args[#args + 1] = 'JUSTID'
    n = n + #redis.call(unpack(args))
  end
  redis.call('XGROUP', 'DELCONSUMER', stream, group, ARGV[i])
end
return n
