-- Takes over what is due in a group: given back and its delay is over, or held
-- by a consumer for longer than its lease. A consumer's lease is the number of
-- milliseconds at the end of its name.
--
-- KEYS: the stream, the hash of losses
-- ARGV: group, consumer, how many, the lease of names without one, the idle
--       time at which what waits is due, that of what went back without a
--       delay, the name's prefix of a predecessor or "", that of this process
-- Returns: milliseconds until more of what waits is due or -1; 0, 1 if there is
--          more at once, 2 if some of that went back without a delay; messages
--          lost, ids, their deliveries so far, entries
local stream, losses = KEYS[1], KEYS[2]
local group, me, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease, horizon, former, own = ARGV[4], ARGV[5], ARGV[7], ARGV[8]
local at_once = string.format('%.0f', (tonumber(horizon) + tonumber(ARGV[6])) / 2) -- whatever the clock did since

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function before(a, b)
  local ams, aseq = parts(a)
  local bms, bseq = parts(b)
  return ams < bms or ams == bms and aseq < bseq
end

local function previous(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq == '0' then
    return string.format('%.0f-18446744073709551615', tonumber(ms) - 1)
  end
  return string.format('%s-%.0f', ms, tonumber(seq) - 1)
end

local function fields(list)
  local t = {}
  for i = 1, #list, 2 do
    t[list[i]] = list[i + 1]
  end
  return t
end

-- The entries after one, as far as it takes little to count them: 100 or more
-- are far behind.
local function count(id)
  local n, bytes = 0, 0
  while n < 100 and bytes < 262144 do
    local rows = redis.call('XRANGE', stream, '(' .. id, '+', 'COUNT', 10)
    if #rows == 0 then
      return n
    end
    n, id = n + #rows, rows[#rows][1]
    for _, row in ipairs(rows) do
      for _, text in ipairs(row[2]) do
        bytes = bytes + #text
      end
    end
  end
  return math.max(n, 100)
end

local due, next = {}, -1
for _, consumer in ipairs(redis.call('XPENDING', stream, group)[4] or {}) do
  local name = consumer[1]
  local idle = string.match(name, '%.(%d+)$') or lease
  if name == '~waiting' then
    idle = horizon
  elseif former ~= '' and string.sub(name, 1, #former) == former and string.sub(name, 1, #own) ~= own then
    idle = '0'
  end
  local rows = redis.call('XPENDING', stream, group, 'IDLE', idle, '-', '+', most + 1, name)
  for _, row in ipairs(rows) do
    due[#due + 1] = row
  end
  if name == '~waiting' and #rows <= most then
    for _, row in ipairs(redis.call('XPENDING', stream, group, '-', '+', 1000, name)) do
      local left = tonumber(horizon) - row[3]
      if left > 0 and (next < 0 or left < next) then
        next = left
      end
    end
  end
end
table.sort(due, function(a, b) return before(a[1], b[1]) end)

local ids, deliveries, entries, lost = {}, {}, {}, 0
for i = 1, math.min(most, #due) do
  ids[i], deliveries[i] = due[i][1], due[i][4]
end
local more = 0
for i = most + 1, #due do
  more = math.max(more, due[i][3] >= tonumber(at_once) and 2 or 1)
end
if more == 1 and #redis.call('XPENDING', stream, group, 'IDLE', at_once, '-', '+', 1, '~waiting') > 0 then
  more = 2
end
if #ids > 0 then
  entries = redis.call('XCLAIM', stream, group, me, 0, unpack(ids))
end

-- What was trimmed before the group got it: the stream has had more entries
-- than the group was given, and fewer are left. It is found once, as the
-- group's count is set right. It is not looked for while the group is far behind.
for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local g = fields(info)
  if g['name'] == group and g['lag'] and g['lag'] > 0 then
    local last = g['last-delivered-id']
    local s = fields(redis.call('XINFO', 'STREAM', stream))
    local length, first = s['length'], s['first-entry'] or nil
    local unread
    if first == nil or before(last, first[1]) then
      unread = length
      if first ~= nil then
        last = previous(first[1])
      end
    else
      unread = count(last)
    end
    if (unread < 100 or unread == length) and g['lag'] > unread then
      lost = g['lag'] - unread
      if first == nil then
        last = s['last-generated-id']
      end
      redis.call('XGROUP', 'SETID', stream, group, last, 'ENTRIESREAD', s['entries-added'] - unread)
    end
  end
end
local told = redis.call('HGET', losses, group)
if told then
  redis.call('HDEL', losses, group)
  lost = lost + tonumber(told)
end
return {next, more, lost, ids, deliveries, entries}
