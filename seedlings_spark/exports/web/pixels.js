// From an image file to the pixels that a network takes: the rule of preprocessing.py, to the bit where the browser
// decodes a file to the same pixels.

// Some phones have no canvas of more.
const MOST = 16_000_000, BITS = 22;

async function decoded(file) {
  let picture;
  try {
    picture = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error("no picture that this browser can read");
  }
  const scale = Math.min(1, Math.sqrt(MOST / (picture.width * picture.height)));
  const width = Math.max(1, Math.floor(picture.width * scale)), height = Math.max(1, Math.floor(picture.height * scale));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, width, height); // black, under what is transparent
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  picture.close();
  return context.getImageData(0, 0, width, height);
}

// For each of `target` places the first source place and the weights, as whole numbers of BITS bits.
function weights(source, start, end, target) {
  const scale = Math.fround(end - start) / target, reach = Math.max(scale, 1), found = [];
  for (let place = 0; place < target; place++) {
    const centre = start + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(source, Math.trunc(centre + reach + 0.5));
    const each = [];
    for (let at = first; at < last; at++) each.push(Math.max(0, 1 - Math.abs((at - centre + 0.5) / reach)));
    const sum = each.reduce((one, other) => one + other, 0);
    found.push({ first, each: each.map((one) => Math.trunc((one / sum) * (1 << BITS) + 0.5)) });
  }
  return found;
}

const byte = (sum) => Math.max(0, Math.min(255, sum >> BITS));

function resized({ data, width, height }, [left, upper, right, lower], targetWidth, targetHeight) {
  const across = weights(width, left, right, targetWidth), down = weights(height, upper, lower, targetHeight);
  const between = new Uint8Array(height * targetWidth * 3), result = new Uint8Array(targetHeight * targetWidth * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < targetWidth; x++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 1 << (BITS - 1), from = (y * width + across[x].first) * 4 + channel;
        for (const weight of across[x].each) { sum += data[from] * weight; from += 4; }
        between[(y * targetWidth + x) * 3 + channel] = byte(sum);
      }
    }
  }
  for (let y = 0; y < targetHeight; y++) {
    for (let at = 0; at < targetWidth * 3; at++) {
      let sum = 1 << (BITS - 1), from = down[y].first * targetWidth * 3 + at;
      for (const weight of down[y].each) { sum += between[from] * weight; from += targetWidth * 3; }
      result[y * targetWidth * 3 + at] = byte(sum);
    }
  }
  return result;
}

export async function fit(file, height, width, aspect) {
  const picture = await decoded(file);
  let usedWidth = picture.width, usedHeight = picture.height, innerWidth = width, innerHeight = height;
  if (aspect === "crop") {
    usedWidth = Math.min(picture.width, (picture.height * width) / height);
    usedHeight = Math.min(picture.height, (picture.width * height) / width);
  } else if (aspect === "pad") {
    const scale = Math.min(width / picture.width, height / picture.height);
    innerWidth = Math.max(1, Math.min(width, Math.floor(picture.width * scale + 0.5)));
    innerHeight = Math.max(1, Math.min(height, Math.floor(picture.height * scale + 0.5)));
  }
  const left = (picture.width - usedWidth) / 2, upper = (picture.height - usedHeight) / 2;
  const box = [left, upper, Math.min(left + usedWidth, picture.width), Math.min(upper + usedHeight, picture.height)];
  const inner = resized(picture, box.map(Math.fround), innerWidth, innerHeight);
  if (innerWidth === width && innerHeight === height) return inner;
  const target = new Uint8Array(height * width * 3);
  const x = Math.floor((width - innerWidth) / 2), y = Math.floor((height - innerHeight) / 2);
  for (let row = 0; row < innerHeight; row++) {
    target.set(inner.subarray(row * innerWidth * 3, (row + 1) * innerWidth * 3), ((y + row) * width + x) * 3);
  }
  return target;
}
