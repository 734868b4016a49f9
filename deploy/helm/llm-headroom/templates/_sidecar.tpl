{{- /*
The sidecar, as one entry of a pod's `initContainers` (or, with sidecar.native: false, of its `containers`), and what it
mounts, as entries of the pod's `volumes`.

In a chart that has this one as a dependency:

      initContainers:
        {{- include "llm-headroom.sidecar" (index .Subcharts "llm-headroom") | nindent 8 }}
      volumes:
        {{- include "llm-headroom.sidecarVolumes" (index .Subcharts "llm-headroom") | nindent 8 }}

Settings are those under `llm-headroom.sidecar`, `llm-headroom.image`, `webConfigSecret` and `scheme` of its values.
*/ -}}
{{- define "llm-headroom.sidecar" -}}
{{- $root := . -}}
{{- with .Values.sidecar -}}
{{- if .enabled -}}
{{- /* generated: chart-ports */ -}}
{{- $ports := dict "llamacpp" 8080 "ollama" 11434 "sglang" 30000 "sglang_router" 29000 "vllm" 8000 -}}
{{- /* end */ -}}
{{- $target := printf "%s=http://127.0.0.1:%d" .engine (int (default (get $ports .engine) .port)) -}}
{{- $env := append (fromJsonArray (include "llm-headroom.identity" $root)) (dict "name" "LLM_HEADROOM_TARGETS" "value" $target) -}}
{{- $env = append $env (dict "name" "LLM_HEADROOM_DISCOVER" "value" "false") -}}
{{- $env = append $env (dict "name" "LLM_HEADROOM_GPU" "value" (toString .gpu.enabled)) -}}
{{- if ne (int .listenPort) 9836 -}}
{{- $env = append $env (dict "name" "LLM_HEADROOM_LISTEN" "value" (printf ":%d" (int .listenPort))) -}}
{{- end -}}
{{- if .gpu.enabled -}}
{{- $env = append $env (dict "name" "NVIDIA_VISIBLE_DEVICES" "value" .gpu.visibleDevices) -}}
{{- $env = append $env (dict "name" "NVIDIA_DRIVER_CAPABILITIES" "value" "utility") -}}
{{- end -}}
{{- if $root.Values.webConfigSecret -}}
{{- $env = append $env (dict "name" "LLM_HEADROOM_WEB_CONFIG" "value" "/etc/llm-headroom-web/web.yml") -}}
{{- end -}}
- name: llm-headroom
  image: {{ include "llm-headroom.image" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  {{- if .native }}
  restartPolicy: Always
  {{- end }}
  args: {{ prepend .extraArgs "run" | toJson }}
  env:
    {{- include "llm-headroom.env" (dict "own" $env "extra" .extraEnv) | nindent 4 }}
  ports:
    - {name: llm-headroom, containerPort: {{ .listenPort }}, protocol: TCP}
  {{- /* No readiness probe: an exporter that fails must not take its engine out of service. */}}
  {{- with .livenessProbe }}
  livenessProbe:
    {{- include "llm-headroom.probe" (dict "root" $root "probe" . "path" "/-/healthy") | nindent 4 }}
  {{- end }}
  resources:
    {{- toYaml .resources | nindent 4 }}
  securityContext:
    {{- toYaml (mergeOverwrite (deepCopy $root.Values.securityContext) .securityContext) | nindent 4 }}
  {{- if or .extraVolumeMounts $root.Values.webConfigSecret }}
  volumeMounts:
    {{- if $root.Values.webConfigSecret }}
    - {{ include "llm-headroom.webConfigMount" $root }}
    {{- end }}
    {{- with .extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "llm-headroom.sidecarVolumes" -}}
{{- if and .Values.sidecar.enabled .Values.webConfigSecret -}}
- {{ include "llm-headroom.webConfigVolume" .Values.webConfigSecret }}
{{- end -}}
{{- end -}}
