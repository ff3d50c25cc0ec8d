// Answers requests with onnxruntime-node: `node answer_golden.mjs FOLDER MODEL`, requests as JSON on standard input.
// FOLDER has node_modules; a request has {name: {type, dims, data}}, the answer {name: {dims, data}} for every output.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const ort = createRequire(join(process.argv[2], 'package.json'))('onnxruntime-node');
const session = await ort.InferenceSession.create(process.argv[3]);
const answers = [];
for (const request of JSON.parse(readFileSync(0, 'utf8'))) {
  const feeds = {};
  for (const [name, { type, dims, data }] of Object.entries(request)) {
    feeds[name] = new ort.Tensor(type, type === 'int64' ? BigInt64Array.from(data, BigInt) : Float32Array.from(data), dims);
  }
  const outputs = await session.run(feeds);
  const plain = (value) => (typeof value === 'bigint' ? Number(value) : value);
  answers.push(Object.fromEntries(Object.entries(outputs).map(
    ([name, tensor]) => [name, { dims: tensor.dims, data: Array.from(tensor.data, plain) }])));
}
process.stdout.write(JSON.stringify(answers));
