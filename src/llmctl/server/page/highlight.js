// Colours for code. Text is only divided: each part becomes a text node or a span with one of five class names.
// Every pattern takes time linear in the text, whatever a model writes.

const MAX_LENGTH = 60_000; // longer code is shown without colours

const words = (text) => new Set(text.split(" "));
const C_WORDS = "break case catch class const continue default delete do else enum extends extern false final finally for goto if implements import inline int interface long mutable namespace new null nullptr operator override private protected public return short signed sizeof static struct super switch template this throw true try typedef typename union unsigned using virtual void volatile while bool char double float auto boolean byte package abstract string var async await foreach in is out ref";
const LANGUAGES = {
  python: [words("False None True and as assert async await break case class continue def del elif else except finally for from global if import in is lambda match nonlocal not or pass raise return self try while with yield"), "#", "py python3 pyi"],
  javascript: [words("as async await break case catch class const continue debugger default delete do else enum export extends false finally for from function if implements import in instanceof interface let new null of private public readonly return static super switch this throw true try type typeof undefined var void while yield"), "//", "js jsx ts tsx typescript mjs json jsonc json5"],
  c: [words(C_WORDS), "//", "c++ cpp cc h hpp cxx java c# cs csharp cuda kotlin kt swift scala dart"],
  go: [words("break case chan const continue default defer else fallthrough false for func go goto if import interface map nil package range return select string struct switch true type var"), "//", "golang"],
  rust: [words("as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while"), "//", "rs"],
  bash: [words("case do done elif else esac export fi for function if in local return select set source then until while"), "#", "sh shell zsh console fish dockerfile makefile make"],
  sql: [words("add all alter and as asc between by case count create delete desc distinct drop else end exists from full group having in index inner insert into is join key left like limit not null on or order outer primary references right select set table then union unique update values view when where with"), "--", "sqlite postgresql mysql psql"],
  yaml: [words("true false null yes no on off"), "#", "yml toml ini"],
  ruby: [words("begin break case class def do else elsif end ensure false for if in module next nil not or and rescue return self super then true unless until when while yield"), "#", "rb perl r julia elixir"],
  lua: [words("and break do else elseif end false for function goto if in local nil not or repeat return then true until while"), "--", "haskell hs"],
  css: [words("important media import keyframes supports from to"), null, "scss less"],
  html: [words(""), null, "xml svg vue xhtml"],
};
const NAMES = new Map(Object.entries(LANGUAGES).flatMap(([name, [, , others]]) => [name, ...others.split(" ")].map((one) => [one, name])));

// An unclosed string or comment ends with its line or with the text, so that nothing is searched for twice.
const DOUBLE = String.raw`"(?:[^"\\\n]|\\[\s\S])*"?`;
const SINGLE = String.raw`'(?:[^'\\\n]|\\[\s\S])*'?`;
const CHARACTER = String.raw`'(?:[^'\\\n]|\\[^\n]{1,10}?)'`; // not the lifetimes of Rust
const QUOTED = String.raw`(?<![\p{L}\p{N}])${SINGLE}`; // not the apostrophe in a word
const SINGLES = { python: SINGLE, javascript: SINGLE, c: CHARACTER, go: CHARACTER, rust: CHARACTER };
const TICKS = "|`(?:[^`\\\\]|\\\\[\\s\\S])*`?";
const TRIPLE = String.raw`"""(?:[^"\\]|\\[\s\S]|"(?!""))*(?:""")?|'''(?:[^'\\]|\\[\s\S]|'(?!''))*(?:''')?|`;
const BLOCK = String.raw`\/\*(?:[^*]|\*(?!\/))*(?:\*\/)?`;
const NUMBER = String.raw`(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)`;
const WORD = String.raw`[\p{L}_$@][\p{L}\p{N}_$]*`;
const LINE = { "//": `\\/\\/[^\\n]*|${BLOCK}`, "#": "(?<![^\\s(;])#[^\\n]*", "--": "--[^\\n]*" };

function patternOf(name) {
  if (name === "html") {
    return String.raw`(?<comment><!--(?:[^-]|-(?!->))*(?:-->)?)|(?<string>"[^"\n<>]*"|'[^'\n<>]*')|(?<word><[\/!?]?[A-Za-z][\w:.-]*|\/?>)|(?<number>&\w{1,12};)`;
  }
  const comment = name === "css" ? BLOCK : LINE[LANGUAGES[name][1]];
  const string = `${name === "python" ? TRIPLE : ""}${DOUBLE}|${SINGLES[name] ?? QUOTED}${["javascript", "go", "bash"].includes(name) ? TICKS : ""}`;
  return `(?<comment>${comment})|(?<string>${string})|(?<number>(?<![\\p{L}\\p{N}_$.])${NUMBER})|(?<word>${WORD})`;
}

const patterns = new Map();

/** Return code as nodes. An unknown language gives a single text node. */
export function highlight(code, language) {
  if (/^(diff|patch)$/i.test(language)) return code.length > MAX_LENGTH ? [text(code)] : diffNodes(code);
  const name = NAMES.get(language.toLowerCase());
  if (!name || code.length > MAX_LENGTH) return [text(code)];
  if (!patterns.has(name)) patterns.set(name, new RegExp(patternOf(name), "gu"));
  const nodes = [];
  let end = 0;
  for (const match of code.matchAll(patterns.get(name))) {
    const kind = kindOf(match, name);
    if (!kind) continue;
    if (match.index > end) nodes.push(text(code.slice(end, match.index)));
    nodes.push(span(kind, match[0]));
    end = match.index + match[0].length;
  }
  if (end < code.length) nodes.push(text(code.slice(end)));
  return nodes;
}

function kindOf({ groups, index, input, 0: whole }, name) {
  if (groups.comment !== undefined) return "comment";
  if (groups.number !== undefined) return "number";
  if (groups.string !== undefined) {
    const isKey = /^\s{0,20}:/.test(input.slice(index + whole.length, index + whole.length + 21));
    return isKey && name === "javascript" ? "name" : "string"; // a key of JSON
  }
  if (name === "html") return "keyword";
  const word = name === "sql" ? whole.toLowerCase() : whole;
  if (LANGUAGES[name][0].has(word)) return "keyword";
  if (input[index + whole.length] === "(" || whole.startsWith("@")) return "name";
  return ["yaml", "css"].includes(name) && /^[\w.-]{0,80}\s{0,8}[:=]/.test(input.slice(index + whole.length, index + whole.length + 90)) ? "name" : null;
}

function diffNodes(code) {
  const kinds = { "+": "string", "-": "removed", "@": "keyword" };
  return code.split(/(?<=\n)/).map((line) => (kinds[line[0]] ? span(kinds[line[0]], line) : text(line)));
}

function text(value) {
  return document.createTextNode(value);
}

function span(kind, value) {
  const element = document.createElement("span");
  element.className = `code-${kind}`;
  element.textContent = value;
  return element;
}
