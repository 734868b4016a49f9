{{- /*
The sidecar, as one entry of a pod's `initContainers` (or, with sidecar.native: false, of its `containers`).

In a chart that has this one as a dependency:

      initContainers:
        {{- include "llm-headroom.sidecar" (index .Subcharts "llm-headroom") | nindent 8 }}

Settings are those under `llm-headroom.sidecar` and `llm-headroom.image` of that chart's values.
*/ -}}
{{- define "llm-headroom.sidecar" -}}
{{- $root := . -}}
{{- with .Values.sidecar -}}
{{- if .enabled -}}
{{- /* generated: chart-ports */ -}}
{{- $ports := dict "llamacpp" 8080 "ollama" 11434 "sglang" 30000 "sglang_router" 29000 "vllm" 8000 -}}
{{- /* end */ -}}
- name: llm-headroom
  image: {{ include "llm-headroom.image" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  {{- if .native }}
  restartPolicy: Always
  {{- end }}
  args: {{ prepend .extraArgs "run" | toJson }}
  env:
    - {name: LLM_HEADROOM_TARGETS, value: "{{ .engine }}=http://127.0.0.1:{{ default (get $ports .engine) .port }}"}
    - {name: LLM_HEADROOM_DISCOVER, value: "false"}
    - {name: LLM_HEADROOM_GPU, value: {{ .gpu.enabled | quote }}}
    {{- if .gpu.enabled }}
    - {name: NVIDIA_VISIBLE_DEVICES, value: {{ .gpu.visibleDevices | quote }}}
    - {name: NVIDIA_DRIVER_CAPABILITIES, value: utility}
    {{- end }}
    {{- with .extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - {name: llm-headroom, containerPort: 9836}
  {{- /* No readiness probe: an exporter that fails must not take its engine out of service. */}}
  livenessProbe:
    httpGet: {path: /-/healthy, port: llm-headroom, scheme: {{ $root.Values.scheme }}}
    periodSeconds: 15
    timeoutSeconds: 5
  resources:
    {{- toYaml .resources | nindent 4 }}
  securityContext:
    {{- toYaml (mergeOverwrite (deepCopy $root.Values.securityContext) .securityContext) | nindent 4 }}
  {{- with .extraVolumeMounts }}
  volumeMounts:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}
{{- end -}}
