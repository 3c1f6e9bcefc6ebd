// The official client of OpenAI for Node: node openai_client.mjs BASE_URL < questions.json
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const answers = [];
for (const question of JSON.parse(readFileSync(0, "utf8"))) {
  const answer = await client.embeddings.create(question);
  answers.push(answer.data.map(item => Array.from(item.embedding)));
}
console.log(JSON.stringify(answers));
