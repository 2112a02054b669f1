// llama.cpp behind a pipe: one JSON request a line on stdin, one JSON answer a line on stdout.
//
//   {"load": path}                          {"bos": id of the token that starts every prompt, or null}
//   {"tokenize": text, "special": bool}     {"tokens": [id, ...]}    special: markup in the text becomes its tokens
//   {"complete": prompt, "max_tokens": n}   {"text": greedy continuation, "tokens": its ids}
//
// The first failure ends the program with its message on stderr and exit code 1.

import {createInterface} from "node:readline";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: LlamaLogLevel.error});
let model = null;

const answers = {
    async load({load}) {
        await model?.dispose();
        model = await llama.loadModel({modelPath: load});
        return {bos: startOfPrompt()};
    },
    async tokenize({tokenize, special}) {
        return {tokens: model.tokenize(tokenize, special)};
    },
    async complete({complete, max_tokens}) {
        const prompt = model.tokenize(complete, true);
        const bos = startOfPrompt();
        if (bos !== null) prompt.unshift(bos);
        // One thread: llama.cpp's spin while they wait for each other, which costs minutes where processors are shared.
        const context = await model.createContext({contextSize: prompt.length + max_tokens, threads: 1});
        const tokens = [];
        for await (const token of context.getSequence().evaluate(prompt, {temperature: 0})) {
            tokens.push(token);
            if (tokens.length === max_tokens) break;
        }
        await context.dispose();
        return {text: model.detokenize(tokens), tokens};
    },
};

function startOfPrompt() {
    return model.tokens.shouldPrependBosToken ? model.tokens.bos : null;
}

try {
    for await (const line of createInterface({input: process.stdin})) {
        const request = JSON.parse(line);
        const name = Object.keys(answers).find((key) => key in request);
        if (name === undefined) throw new Error(`unknown request: ${line}`);
        process.stdout.write(JSON.stringify(await answers[name](request)) + "\n");
    }
    await llama.dispose();
} catch (error) {
    process.stderr.write(`${error.stack ?? error}\n`);
    process.exit(1);
}
