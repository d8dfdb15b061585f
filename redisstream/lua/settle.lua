-- Settles or extends deliveries that a consumer holds, and no others.
--
-- KEYS: the stream, the hash of losses
-- ARGV: "ack", "give" or "extend"; group; for give and extend the consumer that
--       gets them and the idle time they have then; how many deliveries to take
--       off the count; how many names the holder has, the names; the ids in order
-- Returns: the indexes, from 0, of ids that the holder does not hold; to extend,
--          also of those whose entries were trimmed or deleted. What is gone
--          counts as lost to the group.
local stream, losses = KEYS[1], KEYS[2]
local what, group, to, idle, less = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local names = tonumber(ARGV[6])
local first = 6 + names + 1

local held = {}
for i = 7, 6 + names do
  local rows = redis.call('XPENDING', stream, group, ARGV[first], ARGV[#ARGV], 1000000, ARGV[i])
  for _, row in ipairs(rows) do
    held[row[1]] = row[4]
  end
end

local lost, ids, counts, indexes = {}, {}, {}, {}
for i = first, #ARGV do
  local id = ARGV[i]
  if held[id] then
    ids[#ids + 1], counts[#counts + 1], indexes[#indexes + 1] = id, held[id], i - first
  else
    lost[#lost + 1] = i - first
  end
end

local from = 1
while from <= #ids do
  -- a run of ids with the same count, as one command sets one count
  local last = from
  while last < #ids and last - from < 999 and (less == 0 or counts[last + 1] == counts[from]) do
    last = last + 1
  end
  local args
  if what == 'ack' then
    args = {'XACK', stream, group}
  else
    args = {'XCLAIM', stream, group, to, 0}
  end
  for i = from, last do
    args[#args + 1] = ids[i]
  end
  if what ~= 'ack' then
    args[#args + 1] = 'IDLE'
    args[#args + 1] = idle
    if less > 0 then
      args[#args + 1] = 'RETRYCOUNT'
      args[#args + 1] = math.max(0, counts[from] - less)
    end
    args[#args + 1] = 'JUSTID'
  end
  local done = redis.call(unpack(args))
  if what ~= 'ack' and #done <= last - from then
    redis.call('HINCRBY', losses, group, last - from + 1 - #done)
    if what == 'extend' then
      local there = {}
      for _, id in ipairs(done) do
        there[id] = true
      end
      for i = from, last do
        if not there[ids[i]] then
          lost[#lost + 1] = indexes[i]
        end
      end
    end
  end
  from = last + 1
end
return lost
