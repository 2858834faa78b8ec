-- One task, one commit.
SELECT orchestrator.enqueue('noop', '{"n": 1}', queue => 'bench');
