// What the tests in a browser have in common: the browser, and pages of it.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { once } from "node:events";
import { after, before } from "node:test";
import { chromium } from "playwright-core";
import { until } from "./helper.js";

const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
let pages;

export let browser;

before(async () => {
  if (!existsSync(executablePath)) throw new Error(`there is no ${executablePath}; install it: apt-get update && apt-get install -y chromium (or say in CHROMIUM where it is)`);
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  // Pages come from here, so that they load while the server of a test is down.
  pages = createServer(async (q, r) => {
    const { pathname } = new URL(q.url, "http://x");
    const file = pathname.startsWith("/dist/") ? `..${pathname}` : "pages/index.html";
    const type = file.endsWith(".js") ? "text/javascript" : "text/html";
    const body = await readFile(new URL(file, import.meta.url)).catch(() => undefined);
    r.writeHead(body ? 200 : 404, { "content-type": type }).end(body);
  }).listen(0, "127.0.0.1");
  await once(pages, "listening");
});

after(async () => {
  await browser?.close();
  pages?.close();
});

const address = (query) => `http://127.0.0.1:${pages.address().port}/${query}`;

/** Opens a page in a context of its own, or one that is given. */
export async function open(t, { context, query = "" } = {}) {
  context ??= await browser.newContext();
  t.after(() => context.close());
  const page = await context.newPage();
  const failed = [];
  page.on("pageerror", (e) => failed.push(e));
  t.after(() => assert.deepEqual(failed, []));
  await page.goto(address(query));
  await page.waitForFunction("window.loaded");
  return page;
}

/**
 * Opens a tab that can be frozen. Pages of Playwright cannot: they are given the
 * focus for ever, and the browser freezes none that is seen. So this is one of
 * the browser's own context, which Playwright lets be, and spoken to over CDP.
 */
export async function tab(t) {
  const cdp = await browser.newBrowserCDPSession();
  const { targetId } = await cdp.send("Target.createTarget", { url: address("") });
  const { sessionId } = await cdp.send("Target.attachToTarget", { targetId, flatten: false });
  const failed = [];
  const answers = new Map();
  let last = 0;
  let stopped = false;
  cdp.on("Target.receivedMessageFromTarget", ({ message }) => {
    const m = JSON.parse(message);
    if (m.method === "Runtime.exceptionThrown") failed.push(m.params.exceptionDetails);
    if (m.method === "Debugger.paused") stopped = true;
    answers.get(m.id)?.(m);
    answers.delete(m.id);
  });
  async function send(method, params = {}) {
    const id = ++last;
    const answer = new Promise((resolve) => answers.set(id, resolve));
    await cdp.send("Target.sendMessageToTarget", { sessionId, message: JSON.stringify({ id, method, params }) });
    const { error, result } = await answer;
    if (error) throw new Error(`${method}: ${error.message}`);
    return result;
  }
  const page = {
    /** Calls a function in the page. While that is frozen or stopped, it must return at once. */
    async evaluate(f, arg) {
      const expression = typeof f === "string" ? f : `(${f})(${JSON.stringify(arg)})`;
      const { result, exceptionDetails: e } = await send("Runtime.evaluate", { expression, awaitPromise: !stopped, returnByValue: true });
      if (e) throw new Error(e.exception?.description ?? e.text);
      return result.value;
    },
    /** Waits for a condition, polling, as pages that are hidden draw no frames. */
    until: (f, within) => until(String(f), () => page.evaluate(f), within),
    freeze: () => send("Page.setWebLifecycleState", { state: "frozen" }),
    thaw: () => send("Page.setWebLifecycleState", { state: "active" }),
    /** Stops the page as a debugger does: nothing runs, and the browser takes it for a page like any other. */
    async stop() {
      await send("Debugger.enable");
      await send("Debugger.pause");
      await until("it stops", () => stopped);
    },
    async go() {
      await send("Debugger.resume");
      stopped = false;
    },
  };
  t.after(async () => {
    await cdp.send("Target.closeTarget", { targetId });
    await cdp.detach();
    assert.deepEqual(failed, []);
  });
  await page.until("window.loaded");
  await send("Runtime.enable");
  return page;
}
