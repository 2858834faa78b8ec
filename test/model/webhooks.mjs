// The official library of Standard Webhooks against what a receiver of ours was
// sent: a signature that it does not accept is wrong.
//
//   node webhooks.mjs SECRET FILE   FILE: [{"headers": {...}, "body": "..."}, ...]
//
// Prints how many it accepts, and how many of them with another body.
import { readFileSync } from 'node:fs';
import { Webhook } from 'standardwebhooks';

const [secret, file] = process.argv.slice(2);
const webhook = new Webhook(secret, secret.startsWith('whsec_') ? {} : { format: 'raw' });

function accepts({ headers, body }) {
  try {
    webhook.verify(body, headers);
    return true;
  } catch {
    return false;
  }
}

const all = JSON.parse(readFileSync(file, 'utf8'));
console.log(all.filter(accepts).length, all.filter((each) => accepts({ ...each, body: each.body + ' ' })).length);
