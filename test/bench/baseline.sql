-- What a queue of one's own costs: two commits for each task.
INSERT INTO bench.queue (payload) VALUES ('{"n": 1}');
DELETE FROM bench.queue
  WHERE id = (SELECT id FROM bench.queue ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED);
