// What a remote worker on node-postgres does: drain N [SIZE], or latency N.
// Prints one JSON object. The environment says where the server is. The worker's
// claims are not flushed, its reports are.
const { Client } = require('pg');
const [what, n, size = 1000] = [process.argv[2], ...process.argv.slice(3).map(Number)];
const now = () => Number(process.hrtime.bigint()) / 1e6; // ms
const CLAIM = "SELECT task_id, token, input FROM orchestrator.claim('{far}', 'bench', $1)";

async function connect(user) {
  const client = new Client({ user, options: user === 'worker' ? '-c synchronous_commit=off' : undefined });
  await client.connect();
  return client;
}

// One process with two connections: while it claims the next on one, it reports the last ones on the other.
async function drain() {
  const [claims, reports] = [await connect('worker'), await connect('worker')];
  const claim = () => claims.query({ name: 'claim', text: CLAIM, values: [size] });
  const began = now();
  let next = claim(), reported = Promise.resolve(), done = 0;
  for (;;) {
    const { rows } = await next;
    if (rows.length === 0) break;
    next = claim();
    rows.forEach(() => {}); // the handler
    await reported;
    reported = reports.query({
      name: 'complete', text: "SELECT count(*) FILTER (WHERE state = 'completed')::int AS n FROM orchestrator.complete_many($1, $2)",
      values: [rows.map(r => r.task_id), rows.map(r => r.token)] }).then(answer => { done += answer.rows[0].n; });
  }
  await reported;
  console.log(JSON.stringify({ rate: n / ((now() - began) / 1000), done }));
  await Promise.all([claims.end(), reports.end()]);
}

// From the sending of COMMIT to where the handler would start, in ms.
async function latency() {
  const [app, worker] = [await connect('app'), await connect('worker')];
  const samples = [];
  for (let i = 0; i < n; i++) {
    const started = worker.query("CALL orchestrator.await_work('{far}', '10 s')")
      .then(() => worker.query({ name: 'claim', text: CLAIM, values: [1] })).then(({ rows }) => ({ at: now(), row: rows[0] }));
    await new Promise(resolve => setTimeout(resolve, 5)); // it sleeps by now
    await app.query('BEGIN');
    await app.query("SELECT orchestrator.enqueue('far')");
    const sent = now();
    await app.query('COMMIT');
    const { at, row } = await started;
    samples.push(at - sent);
    await worker.query('SELECT orchestrator.complete($1, $2)', [row.task_id, row.token]);
  }
  console.log(JSON.stringify({ samples }));
  await Promise.all([app.end(), worker.end()]);
}

({ drain, latency })[what]();
