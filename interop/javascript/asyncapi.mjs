// asyncapi.mjs URL   /asyncapi.json of a gateway against AsyncAPI 3.0's own JSON Schema.
import { createRequire } from 'node:module';
const require = createRequire(import.meta.url);
const Ajv = require('ajv');
const specification = require('@asyncapi/specs/schemas/3.0.0-without-$id.json');
const document = await (await fetch(process.argv[2])).json();
const validate = new Ajv({ strict: false, allErrors: true, validateFormats: false }).compile(specification);
if (!validate(document)) {
  console.error('not AsyncAPI 3.0:', JSON.stringify(validate.errors.slice(0, 5), null, 1));
  process.exit(1);
}
const { payload } = document.components.messages.orders;
if (payload.schema.name !== 'Order') {
  console.error('the schema of orders is not in it:', payload);
  process.exit(1);
}
console.log(`asyncapi.json: valid, ${Object.keys(document.channels).length} channels`);
