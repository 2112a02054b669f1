// Renders a text/template as Ollama does: stdin has [template, conversations], stdout gets a list of texts, all as JSON.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var source string
	var conversations [][]message
	check(json.NewDecoder(os.Stdin).Decode(&[]any{&source, &conversations}))
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(source))
	texts := []string{}
	for _, messages := range conversations {
		var out strings.Builder
		check(parsed.Execute(&out, map[string]any{"Messages": messages}))
		texts = append(texts, out.String())
	}
	check(json.NewEncoder(os.Stdout).Encode(texts))
}
