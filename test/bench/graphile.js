// The same drain by graphile-worker: graphile.js N SIZE. As its own page on performance sets it up: batched
// completion without delay, a local queue, 24 jobs at once; SIZE is that of the local queue.
const { Logger, makeWorkerUtils, run } = require('graphile-worker');
const [n, size] = process.argv.slice(2).map(Number);
const connectionString = `postgres:///${process.env.PGDATABASE}`;
const logger = new Logger(() => () => {});

(async () => {
  const utils = await makeWorkerUtils({ connectionString, logger });
  await utils.migrate();
  for (let left = n; left > 0; left -= 20000)
    await utils.addJobs(Array.from({ length: Math.min(left, 20000) }, (_, i) => ({ identifier: 'noop', payload: { n: i } })));
  await utils.withPgClient(client => client.query('VACUUM ANALYZE'));
  let done = 0, finish;
  const finished = new Promise(resolve => { finish = resolve; });
  const began = process.hrtime.bigint();
  const runner = await run({
    logger, noHandleSignals: true, taskList: { noop: () => { if (++done === n) finish(); } },
    preset: { worker: { connectionString, concurrentJobs: 24, maxPoolSize: 25, localQueue: { size }, completeJobBatchDelay: 0, failJobBatchDelay: 0 } },
  });
  await finished;
  await runner.stop(); // what is done is written
  const seconds = Number(process.hrtime.bigint() - began) / 1e9;
  console.log(JSON.stringify({ rate: n / seconds, done }));
  await utils.release();
})();
