// What a picture shows, computed by this server.
export const told = "Your pictures go to this server, which does not keep them.";

export async function models() {
  return (await fetch("models.json")).json();
}

function coded(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(new Error("no file that this browser can read"));
    reader.readAsDataURL(file);
  });
}

export async function predict(file, { name, version }) {
  const body = JSON.stringify({ instances: [{ b64: await coded(file) }] });
  const answer = await fetch(`v1/models/${name}/versions/${version}:predict`, { method: "POST", body });
  const found = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(found.error);
  return found.predictions[0];
}
