// llama.cpp behind a pipe: one JSON request a line on stdin, one JSON answer a line on stdout.
//
//   {"load": path}                          {"bos": id of the token that starts every prompt, or null}
//   {"tokenize": text, "special": bool}     {"tokens": [id, ...]}    special: markup in the text becomes its tokens
//   {"complete": prompt, "max_tokens": n}   {"text": greedy continuation, "tokens": its ids}
//   {"next": [id, ...]}                     {"tokens": the likeliest id behind each of them}
//   {"chat": question, "max_tokens": n}     {"text": greedy answer, "stop": why it ends, "tokens": ids of the whole chat}
//                                           by the template in the file
//
// The first failure ends the program with its message on stderr and exit code 1.

import {createInterface} from "node:readline";
import {getLlama, JinjaTemplateChatWrapper, LlamaChatSession, LlamaLogLevel} from "node-llama-cpp";

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
        const context = await createContext(prompt.length + max_tokens);
        const tokens = [];
        for await (const token of context.getSequence().evaluate(prompt, {temperature: 0})) {
            tokens.push(token);
            if (tokens.length === max_tokens) break;
        }
        await context.dispose();
        return {text: model.detokenize(tokens), tokens};
    },
    async next({next}) {
        const context = await createContext(next.length);
        const asked = next.map((token) => [token, {generateNext: {token: true, options: {temperature: 0}}}]);
        const found = await context.getSequence().controlledEvaluate(asked);
        await context.dispose();
        return {tokens: found.map(({next}) => next.token)};
    },
    async chat({chat, max_tokens}) {
        const template = model.fileInfo.metadata.tokenizer.chat_template;
        const context = await createContext(512);
        const contextSequence = context.getSequence();
        const chatWrapper = new JinjaTemplateChatWrapper({template, tokenizer: model.tokenizer});
        const session = new LlamaChatSession({contextSequence, chatWrapper});
        session.setChatHistory([]); // no system message but the one that the template puts in itself
        const answer = await session.promptWithMeta(chat, {temperature: 0, maxTokens: max_tokens});
        const tokens = contextSequence.contextTokens;
        await context.dispose();
        return {text: answer.responseText, stop: answer.stopReason, tokens};
    },
};

// One thread: llama.cpp's spin while they wait for each other, which costs minutes where processors are shared.
function createContext(contextSize) {
    return model.createContext({contextSize, threads: 1});
}

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
