-- One row of a table with five columns, one commit.
INSERT INTO bench.plain (kind, created_at, name, input) VALUES (1, now(), 'noop', '{"n": 1}');
