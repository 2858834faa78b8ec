-- One task and the transaction it was enqueued in, one commit; a rest.
INSERT INTO bench.sent SELECT orchestrator.enqueue('stamp', '{}', queue => 'bench'), pg_current_xact_id()::xid;
\sleep 5 ms
