import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

test("the examples of the README are compiled ones", () => {
  const read = (file) => readFileSync(new URL(file, import.meta.url), "utf8");
  const flat = (s) => s.split("\n").map((l) => l.trim()).filter((l) => l && !l.startsWith("import ")).join("\n");
  const compiled = flat(read("types.ts"));
  const examples = [...read("../README.md").matchAll(/```ts\n([^]*?)```/g)].map((m) => flat(m[1]));
  assert.equal(examples.length, 3);
  const lines = compiled.split("\n");
  for (const l of examples.join("\n").split("\n")) assert.ok(lines.includes(l), `not in types.ts: ${l}`);
});

test("the lock file names no registry", () => {
  assert.doesNotMatch(readFileSync(new URL("../package-lock.json", import.meta.url), "utf8"), /"resolved"/);
});
