// Draws the progress of a task until it ends, on node-postgres: node progress.js TASK
// LISTEN needs a session of its own: no pooler that shares sessions out by the transaction.
const { Client } = require('pg');
const task = Number(process.argv[2]), client = new Client();

async function draw() { // events carry numbers and states; what a person is told is read
  const { rows: [row] } = await client.query(`SELECT state, CASE state WHEN 'completed' THEN 1 ELSE coalesce(progress, 0) END AS progress,
    coalesce(message, '') AS message FROM orchestrator.task_status WHERE task_id = $1`, [task]);
  const filled = Math.round((row?.progress ?? 0) * 20);
  if (row) console.log(`${'█'.repeat(filled)}${'░'.repeat(20 - filled)} ${String(Math.round(row.progress * 100)).padStart(3)} %  ${row.state} ${row.message}`.trimEnd());
  return row && !['completed', 'failed', 'cancelled', 'skipped'].includes(row.state);
}

(async () => {
  let drawing = null;
  const ended = new Promise(end => client.on('notification', () => {
    drawing = (drawing ?? Promise.resolve(true)).then(async more => more && (await draw()) || end());
  }));
  await client.connect();
  await client.query(`LISTEN orchestrator_task_${task}`);
  if (await draw()) await ended; // it may have ended before
  await client.end();
})();
