// What a picture shows, computed in this browser: nothing of it is sent anywhere.
import * as ort from "./runtime/ort.wasm.min.mjs";
import { fit } from "./pixels.js";

ort.env.wasm.numThreads = 1; // more need headers that few web servers send
ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;

export const told = "Your pictures stay in this browser. The page also works without a network, once it was open with one.";

let session;

export async function models() {
  if ("serviceWorker" in navigator) navigator.serviceWorker.register("offline.js").catch(() => {});
  const known = await (await fetch("models.json")).json();
  session = await ort.InferenceSession.create("network.onnx", { executionProviders: ["wasm"] });
  return known;
}

export async function predict(file, { classes, size: [height, width], aspect }) {
  const pixels = await fit(file, height, width, aspect);
  const features = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
  const { probabilities } = await session.run({ features }, ["probabilities"]);
  return { classes, probabilities: Float32Array.from(probabilities.data) };
}
