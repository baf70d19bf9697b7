/** The page /docs: a readable form of /openapi.json. */

import { KEY } from "/web/api.js";

const main = document.getElementById("api");

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

/** Return the type and limits of a field in words, for example "number, 0 to 2". */
function kind(schema, all) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) {
    return schema.anyOf
      .filter((one) => one.type !== "null")
      .map((one) => kind(one, all))
      .join(" or ");
  }
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.type === "array") return `list of ${kind(schema.items ?? {}, all)}`;
  return [schema.type ?? "anything", bounds(schema)].filter(Boolean).join(", ");
}

function bounds({ minimum, exclusiveMinimum, maximum, minLength, maxLength }) {
  const least = minimum ?? exclusiveMinimum;
  if (maximum !== undefined && Math.abs(maximum) > 2 ** 31) return "";
  if (least !== undefined && maximum !== undefined) {
    return `${exclusiveMinimum === undefined ? "" : "above "}${least} to ${maximum}`;
  }
  if (least !== undefined) return `at least ${least}`;
  if (maxLength !== undefined) return `${minLength ?? 0} to ${maxLength} characters`;
  return "";
}

function fields(schema, all) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const needed = schema.required?.includes(name) ? "required" : "";
    return element(
      "tr",
      element("th", name),
      element("td", kind(field, all)),
      element("td", needed),
    );
  });
  const table = element("table", element("tbody", ...rows));
  const box = element("div", table);
  box.className = "fields";
  return box;
}

function route(path, method, operation, all) {
  const body = operation.requestBody?.content["application/json"].schema.$ref;
  const title = element("h2", element("b", method.toUpperCase()), ` ${path}`);
  const parts = [title, element("p", operation.description ?? "")];
  if (body) parts.push(fields(all[body.split("/").at(-1)], all));
  return element("section", ...parts);
}

async function show() {
  const key = sessionStorage.getItem(KEY);
  const response = await fetch("/openapi.json", {
    headers: key ? { Authorization: `Bearer ${key}` } : {},
  });
  if (!response.ok)
    throw new Error("The server requires an API key. Enter it on the chat page first.");
  const { info, paths, components } = await response.json();
  const intro = element(
    "p",
    `${info.description} Version ${info.version}. Fields that are not listed are refused. ` +
      "A field that is null counts as left out.",
  );
  const routes = Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) =>
      route(path, method, operation, components.schemas),
    ),
  );
  main.replaceChildren(element("h1", info.title), intro, ...routes);
}

show().catch((error) => main.replaceChildren(element("p", error.message)));
