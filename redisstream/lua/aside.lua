-- Copies an entry that cannot be understood to another stream and acknowledges it.
--
-- KEYS: the stream, the one set aside
-- ARGV: group, id, how many entries to keep aside, then fields and values
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 4))
return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
