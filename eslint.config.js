import js from "@eslint/js";
import globals from "globals";

const vendored = ["flower_plugin/static/vendor/", "tests/browser/vendor/"];
const elsewhere = [".venv*/", ".demo/", "build/", "dist/"];

const limits = {
    complexity: ["error", 15],
    "max-depth": ["error", 3],
    "max-len": ["error", {code: 120}],
    "max-lines": ["error", {max: 250, skipBlankLines: true, skipComments: true}],
    "max-lines-per-function": ["error", {max: 50, skipBlankLines: true, skipComments: true}],
    "max-params": ["error", 6]
};

const habits = {
    curly: "error",
    eqeqeq: "error",
    "consistent-return": "error",
    "no-implicit-globals": "error",
    "no-shadow": "error",
    "no-unused-expressions": "error",
    "no-use-before-define": ["error", {functions: false}],
    "no-var": "error",
    "object-shorthand": ["error", "properties", {avoidQuotes: true}],
    "prefer-const": ["error", {destructuring: "all"}],
    "prefer-template": "off"
};

// What would make markup or code of a string; the policy of the pages forbids it too.
const safety = {
    "no-control-regex": "off",  // control characters are what we make visible
    "no-eval": "error",
    "no-implied-eval": "error",
    "no-new-func": "error",
    "no-restricted-syntax": ["error", {
        selector: "AssignmentExpression[left.property.name=/^(inner|outer)HTML$/], " +
            "CallExpression[callee.property.name=/^(insertAdjacentHTML|write)$/]",
        message: "Make elements: a string of a record must stay a string."
    }]
};

export default [
    {ignores: [...vendored, ...elsewhere]},
    js.configs.recommended,
    {
        languageOptions: {ecmaVersion: 2022, sourceType: "module"},
        linterOptions: {reportUnusedDisableDirectives: "error"},
        rules: {...limits, ...habits, ...safety}
    },
    {files: ["flower_plugin/static/**/*.js"], languageOptions: {globals: globals.browser}},
    {
        files: ["tests/javascript/**/*.js", "eslint.config.js"],
        languageOptions: {globals: {...globals.node, document: "readonly"}},
        rules: {"max-lines-per-function": "off"}
    }
];
