{{- define "llm-headroom.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "llm-headroom.fullname" -}}
{{- $name := include "llm-headroom.name" . -}}
{{- $own := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full := default $own .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]" $full) -}}
{{- fail (printf "the name of a Service must begin with a letter, not as %q does: set fullnameOverride" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{- define "llm-headroom.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "llm-headroom.selectorLabels" -}}
app.kubernetes.io/name: {{ include "llm-headroom.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /* All labels of an object. Takes {root, labels}: its own, which go before `commonLabels`; a key may stand only once. */ -}}
{{- define "llm-headroom.labels" -}}
{{- with .root -}}
{{ include "llm-headroom.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- with merge dict (default dict .labels) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Name, namespace and labels of an object. Takes {root, suffix, labels, annotations, namespace}; the last four may be missing. */ -}}
{{- define "llm-headroom.metadata" -}}
name: {{ include "llm-headroom.fullname" .root }}{{ with .suffix }}-{{ . }}{{ end }}
namespace: {{ default (include "llm-headroom.namespace" .root) .namespace }}
labels:
  {{- include "llm-headroom.labels" (pick . "root" "labels") | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "llm-headroom.serviceAccountName" -}}
{{- default (ternary (include "llm-headroom.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "llm-headroom.image" -}}
{{- $registry := default .Values.image.registry (dig "imageRegistry" "" .Values.global) -}}
{{- $name := ternary (printf "%s/%s" $registry .Values.image.repository) .Values.image.repository (ne $registry "") -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* The configuration file: `config`, with `probe` where the deployment answers it. */ -}}
{{- define "llm-headroom.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if and (eq .Values.mode "deployment") .Values.probe.allow -}}
{{- $_ := set $config "probe" (mergeOverwrite (pick .Values.probe "allow" "modules") (default dict $config.probe)) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- /* Variables of the chart's own, and those of the user, who overrides them by name. Takes {own, extra}. */ -}}
{{- define "llm-headroom.env" -}}
{{- $names := list -}}
{{- range .extra -}}{{- $names = append $names .name -}}{{- end -}}
{{- range .own }}
{{- if not (has .name $names) }}
- {{ toJson . }}
{{- end }}
{{- end }}
{{- range .extra }}
- {{ toJson . }}
{{- end }}
{{- end -}}

{{- /* Where the pod is: targets on loopback are named after it, and OTLP sends it. */ -}}
{{- define "llm-headroom.identity" -}}
[{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
 {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
 {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
{{- end -}}

{{- /* A probe by its settings: a handler of the user's own, or else a path, or the port where a password is needed. Takes {root, probe, path}. */ -}}
{{- define "llm-headroom.probe" -}}
{{- $own := or .probe.httpGet .probe.tcpSocket .probe.exec -}}
{{- if not $own }}
{{- if .root.Values.webConfigSecret }}
tcpSocket: {port: llm-headroom}
{{- else }}
httpGet: {path: {{ .path }}, port: llm-headroom, scheme: {{ .root.Values.scheme }}}
{{- end }}
{{- end }}
{{ toYaml .probe }}
{{- end -}}

{{- define "llm-headroom.webConfigMount" -}}
{name: llm-headroom-web, mountPath: /etc/llm-headroom-web, readOnly: true}
{{- end -}}
{{- define "llm-headroom.webConfigVolume" -}}
{name: llm-headroom-web, secret: {secretName: {{ . | quote }}}}
{{- end -}}
