{{- define "llm-headroom.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "llm-headroom.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "llm-headroom.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "llm-headroom.selectorLabels" -}}
app.kubernetes.io/name: {{ include "llm-headroom.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "llm-headroom.labels" -}}
{{ include "llm-headroom.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "llm-headroom.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "llm-headroom.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "llm-headroom.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository $tag -}}
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

{{- /* Probes, ports and environment that every container of the exporter has. */ -}}
{{- define "llm-headroom.probes" -}}
livenessProbe:
  httpGet: {path: /-/healthy, port: llm-headroom, scheme: {{ .Values.scheme }}}
  periodSeconds: 15
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: /-/healthy, port: llm-headroom, scheme: {{ .Values.scheme }}}
  periodSeconds: 10
  timeoutSeconds: 5
{{- end -}}

{{- define "llm-headroom.webConfigProbes" -}}
livenessProbe:
  tcpSocket: {port: llm-headroom}
  periodSeconds: 15
readinessProbe:
  tcpSocket: {port: llm-headroom}
  periodSeconds: 10
{{- end -}}
