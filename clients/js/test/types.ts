// The examples of the README, and what the types promise. It is compiled, not run.
import { connect, indexedDBOutbox, type Delivery, type Message, type Position } from "@echobus/client";

declare function fetchToken(): Promise<string>;
declare function bill(order: Order): Promise<void>;

interface Order {
  id: string;
  total: number;
}

const echo = connect("wss://example.org/echo", { token: () => fetchToken() });
const orders = echo.topic<Order>("orders");

orders.subscribe({}, (m) => console.log("every order:", m.value.id));
orders.subscribe({ group: "billing" }, async (m) => bill(m.value)); // acknowledged when the promise fulfils

const { position } = await orders.publish({ id: "o-1", total: 12.5 }, { key: "alice" }); // stored

for await (const m of orders.subscribe({ group: "billing" })) {
  await bill(m.value);
  await m.ack();
}

{
  const echo = connect("/echo", { outbox: indexedDBOutbox("orders") });
  echo.on("state", (s) => s.state === "up" && s.resumed);
}

const p: Position = position;
orders.subscribe({ from: { position: p } }, (m: Message<Order>) => m.id);
orders.subscribe({ group: "g", lease: 1000 }, (m: Delivery<Order>) => m.nack(100));
// @ts-expect-error: a message of no group is not acknowledged
orders.subscribe({}, (m) => m.ack());
// @ts-expect-error: no order
void orders.publish({ id: 1 });
