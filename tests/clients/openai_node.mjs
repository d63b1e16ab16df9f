// OpenAI's client for Node.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.BASE_URL}/v1`, apiKey: "-", maxRetries: 0 });
const messages = [{ role: "user", content: "Pages" }];
const common = { model: "small", temperature: 0, max_tokens: 16 };
const schema = {
  type: "object",
  properties: { a: { enum: ["x", "y"] } },
  required: ["a"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "look", parameters: schema } }];

function must(holds, what) {
  if (!holds) throw new Error(what);
}

const checks = {
  async models() {
    const found = [];
    for await (const one of client.models.list()) found.push(one.id);
    must(found.join() === "small", found.join());
    must((await client.models.retrieve("small")).id === "small", "retrieve");
  },
  async completion() {
    const whole = (await client.completions.create({ prompt: "Pages", ...common })).choices[0].text;
    let text = "";
    for await (const one of await client.completions.create({ prompt: "Pages", stream: true, ...common }))
      text += one.choices[0]?.text ?? "";
    must(text === whole, "the stream differs");
  },
  async chat() {
    const whole = (await client.chat.completions.create({ messages, ...common })).choices[0].message.content;
    let text = "";
    for await (const one of await client.chat.completions.create({ messages, stream: true, ...common }))
      text += one.choices[0]?.delta?.content ?? "";
    must(text === whole, "the stream differs");
  },
  async "log probabilities"() {
    const done = await client.chat.completions.create({ messages, logprobs: true, top_logprobs: 3, ...common });
    must(done.choices[0].logprobs.content.every((one) => one.top_logprobs.length === 3), "not three each");
  },
  async structured() {
    const response_format = { type: "json_schema", json_schema: { name: "s", schema } };
    const options = { ...common, temperature: 1, max_tokens: 200 };
    const done = await client.chat.completions.create({ messages, response_format, ...options });
    must(["x", "y"].includes(JSON.parse(done.choices[0].message.content).a), "it does not fit");
  },
  async tools() {
    const options = { ...common, temperature: 1, max_tokens: 400, tools, tool_choice: "required" };
    const done = await client.chat.completions.create({ messages, ...options });
    must(done.choices[0].message.tool_calls[0].function.name === "look", "no call");
  },
  async errors() {
    try {
      await client.completions.create({ prompt: "Pages", ...common, temperature: -1 });
    } catch (error) {
      must(error.status === 400 && error.message.includes("temperature"), error.message);
      return;
    }
    throw new Error("it was served");
  },
};

for (const [check, run] of Object.entries(checks)) {
  let wrong = "";
  try {
    await run();
  } catch (error) {
    wrong = String(error).slice(0, 200);
  }
  console.log(JSON.stringify({ check, wrong }));
}
